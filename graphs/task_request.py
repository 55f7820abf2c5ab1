"""What a recipe asks of a snapshot, read from a registry."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.models.request import TaskRequest, make_request
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import Model
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.registry.catalog import Registry


def load_task_request(
    registry: Registry, model: Model, manifest: Manifest, arrays: Sequence[InputArray] = ()
) -> TaskRequest:
    """Return what a recipe asks of a snapshot; the snapshot's plain files are read and verified.

    Parameters
    ----------
    registry
        Where the snapshot is.
    model
        The recipe's section `model`.
    manifest
        The snapshot.
    arrays
        `forward`: what the model's forward takes.

    Raises
    ------
    CheckpointError
        The snapshot holds code that the recipe does not trust.
    CorruptBlob, SnapshotGone
        Files of it are damaged or gone.
    """
    return make_request(model, manifest, registry.files(manifest), arrays)
