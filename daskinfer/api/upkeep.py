"""Looking after registries: is everything there, what changed, and bringing one up to another."""

from __future__ import annotations

from daskinfer.spec.upkeep import Verification
from daskinfer.storage.registry import verification
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
