"""From a checkpoint directory to a snapshot: where the models and storage floors meet."""

from __future__ import annotations

from pathlib import Path

from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.spec.recipe import Recipe
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.publishing import CheckpointSource, GroupSource, publish
from daskinfer.storage.registry import Registry


def publish_directory(registry: Registry, name: str, directory: str, alias: str | None = None) -> Resolution:
    """Convert a checkpoint directory and publish it; content that is there already is not stored again.

    Raises
    ------
    CheckpointError
        It is no checkpoint, or none that can be cut.
    """
    found = inspect_checkpoint(Path(directory))
    source = CheckpointSource(
        architecture=found.architecture,
        dtype=found.dtype,
        files=found.files,
        groups=tuple(GroupSource(group.name, group.blob) for group in found.groups),
        provenance=found.provenance,
    )
    return publish(registry, name, source, alias)


def resolve_checkpoint(recipe: Recipe) -> Resolution:
    """Return what the recipe's checkpoint means now, publishing a local directory on its first use."""
    reference = recipe.model.checkpoint
    registry = Registry(recipe.registry_url)
    if "@" not in reference and ("/" in reference or Path(reference).is_dir()):
        return publish_directory(registry, Path(reference).resolve().name, reference)
    return registry.resolve(reference)
