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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> manifest = registry.manifest(registry.resolve("mini@prod").snapshot)
    >>> load_task_request(registry, Model(checkpoint="mini@prod", task="embed"), manifest).architecture
    'TestModel'
    """
    return make_request(model, manifest, registry.files(manifest), arrays)
