"""What of a registry is kept: who holds snapshots, and deleting what nothing keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection

from daskinfer.spec.registry.collection import CollectionReport, LockRow
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.collection.holders import list_locks
from daskinfer.storage.registry.collection.retention import Retention
from daskinfer.storage.registry.heartbeats import Watcher


def locks(registry: str, reference: str | None = None) -> list[LockRow]:
    """Return who holds the snapshots of a registry, or what a reference means; dead or alive.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> locks(make_registry("registry").url, "mini@prod")
    []
    """
    found = Registry(registry)
    return list_locks(found, None if reference is None else found.resolve(reference).snapshot)


def collect_garbage(
    registry: str,
    *,
    keep_versions: int = Retention.keep_versions,
    keep_days: float = Retention.keep_days,
    dry_run: bool = False,
    wait: bool = False,
    assume_dead: Collection[str] = (),
    watch: Callable[[str, int, int], None] | None = None,
) -> CollectionReport:
    """Delete the versions that no alias, no rule and no job keeps, and what publishes left that were cut off.

    Parameters
    ----------
    registry
        URL of the registry.
    keep_versions
        How many of the newest versions of every name stay, yanked ones not counted.
    keep_days
        Days for which a version stays after it was published.
    dry_run
        Change nothing; say what would be done.
    wait
        Watch the heartbeats of the jobs that stand in the way, and take those for dead that are silent for as long as
        they promised not to be: 15 minutes. Without it every job counts as alive.
    assume_dead
        Jobs that are known to be dead.
    watch
        Called with what is being done, and how many of how many seconds are over.

    Raises
    ------
    CheckpointError
        Where nobody goes by a name in `assume_dead`.
    CorruptBlob
        Where a manifest is damaged, so that nobody can tell which blobs are needed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> found = collect_garbage(registry, keep_versions=0, keep_days=0, dry_run=True)
    >>> len(found.deleted), len(found.kept)
    (2, 1)
    """
    watch = watch or (lambda doing, done, total: None)
    return collect(
        Registry(registry),
        Retention(keep_versions, keep_days),
        dry_run=dry_run,
        wait=wait,
        assume_dead=assume_dead,
        watcher=Watcher(tell=lambda seconds, longest: watch("watching heartbeats", int(seconds), int(longest))),
    )
