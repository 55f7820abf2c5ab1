"""Looking after registries: is everything there, what changed, and bringing one up to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daskinfer.spec.registry.upkeep import Difference, SyncReport, Verification
from daskinfer.storage.registry import differences, verification
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import Watch
from daskinfer.storage.registry.syncing import sync as syncing
from daskinfer.storage.registry.syncing.merging import Side


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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> found = verify("mini@prod", registry=make_registry("registry").url, deep=True)
    >>> found.damaged
    False
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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> found = diff("mini@v1", "mini@v2", registry=make_registry("registry").url)
    >>> found.groups.changed, found.changes[0].name, found.changes[0].elements
    (('embeddings', 'layer.0', 'layer.1'), 'embeddings.bias', 8)
    """
    return differences.compare(Registry(registry), before, after, watch)


def sync(
    source: str,
    target: str,
    references: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resolve: Mapping[str, Side] | None = None,
    watch: Watch | None = None,
) -> SyncReport:
    """Copy what one registry has and another lacks: snapshots, versions, yanks, signatures, newer moves of aliases.

    Parameters
    ----------
    source, target
        URLs of the registries, from where to where.
    references
        `minilm` for a model with all its versions and aliases, `minilm@prod` for one version and that alias,
        `minilm@v3` for one version. By default everything.
    dry_run
        Write nothing; only say what would be done.
    resolve
        `minilm@prod` -> "source" or "target": whose target to keep, for aliases that were moved in both.
    watch
        Called with what is being done, and how many of how many bytes are done.

    Returns
    -------
    SyncReport
        What was done; not `clean` where aliases are in conflict or could not be moved.

    Raises
    ------
    CheckpointError
        There is no such checkpoint in the source.
    CorruptBlob
        What should be copied is damaged.
    StorageError
        A store refuses, or garbage collection in the target is in the way.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> report = sync(make_registry("registry", versions=3).url, "copy", ["mini@prod"])
    >>> report.clean, [(version.name, version.number) for version in report.versions]
    (True, [('mini', 3)])
    """
    return syncing.sync(Registry(source), Registry(target), references, dry_run=dry_run, resolve=resolve, watch=watch)
