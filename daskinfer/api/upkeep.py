"""Looking after registries: is everything there, what changed, and bringing one up to another."""

from __future__ import annotations

from daskinfer.spec.upkeep import Difference, Verification
from daskinfer.storage.registry import differences, verification
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing import Watch


def verify(
    reference: str | None = None, *, registry: str, deep: bool = False, watch: Watch | None = None
) -> Verification:
    """Look over one checkpoint, or a whole registry, without changing anything.

    Parameters
    ----------
    reference
        `minilm@prod`; by default everything.
    registry
        URL of the registry.
    deep
        Read and hash every byte, those that are only referred to as well.
    watch
        Called with what is being done, and how many of how many bytes are done.

    Returns
    -------
    Verification
        What was found; `damaged` says whether anything is.

    Raises
    ------
    CheckpointError
        There is no such checkpoint, or no registry.
    """
    return verification.verify(Registry(registry), reference, deep=deep, watch=watch)


def diff(before: str, after: str, *, registry: str, watch: Watch | None = None) -> Difference:
    """Return what differs between two checkpoints, tensor by tensor; equal tensors are not read.

    Parameters
    ----------
    before, after
        `minilm@v1`, `minilm@candidate` ...
    registry
        URL of the registry.
    watch
        Called with what is being done, and how many of how many bytes are done.

    Raises
    ------
    CheckpointError
        There is no such checkpoint.
    CorruptBlob
        A tensor that had to be read is damaged.
    """
    return differences.compare(Registry(registry), before, after, watch)
