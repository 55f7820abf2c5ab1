"""What holds snapshots, and what garbage collection did about the rest."""

from __future__ import annotations

from daskinfer.spec.section import Section


class Holder(Section):
    """Who holds a snapshot."""

    job: str
    """Job id, or what else it holds the lock by."""
    purpose: str
    """run, profile, publish, base (a publish takes blobs from it), alias ..."""
    by: str
    """user@host."""
    since: str
    """ISO 8601, UTC."""
    ttl_seconds: int
    """How long its heartbeat may stay unchanged before a collector that watches takes it for dead."""
    heartbeat_age: float | None
    """Seconds since its heartbeat changed, by the store's clock; None where the store does not tell."""


class LockRow(Holder):
    """A lock, as it is listed."""

    snapshot: str
    """Snapshot digest."""
    versions: tuple[str, ...]
    """What the snapshot is: `minilm v3`."""


class DeletedSnapshot(Section):
    """A snapshot that was deleted, or would be."""

    snapshot: str
    """Snapshot digest."""
    versions: tuple[str, ...]
    """What it was: `minilm v3`."""
    blobs: int
    """Blobs that no other snapshot needs."""
    size: int
    """Their length in bytes."""


class KeptSnapshot(Section):
    """A snapshot that stays."""

    snapshot: str
    """Snapshot digest."""
    versions: tuple[str, ...]
    """What it is: `minilm v3`."""
    reasons: tuple[str, ...]
    """The rules that keep it."""
    holders: tuple[Holder, ...] = ()
    """Who holds it; asked only where no rule keeps it."""


class PublishRow(Section):
    """A publish that was not done."""

    publish: str
    """What to call it: `publish-1a2b3c4d`."""
    name: str
    """Model name."""
    by: str
    """user@host."""
    since: str
    """ISO 8601, UTC."""
    heartbeat_age: float | None
    """Seconds since its heartbeat changed, by the store's clock; None where the store does not tell."""


class OpenCollection(Section):
    """A turn of garbage collection that is under way, or died while it deleted."""

    collector: str
    """What to call it: `gc-1a2b3c4d`."""
    by: str
    """user@host."""
    since: str
    """ISO 8601, UTC."""


class CollectionReport(Section):
    """What garbage collection did, or would do."""

    registry: str
    """URL of the registry."""
    dry_run: bool
    """Whether nothing was changed."""
    blobs: int
    """Blobs deleted."""
    size: int
    """Their length in bytes."""
    deleted: tuple[DeletedSnapshot, ...]
    """Snapshots deleted."""
    kept: tuple[KeptSnapshot, ...]
    """Snapshots that stay."""
    finished: tuple[PublishRow, ...]
    """Publishes that were committed and cut off, and were finished now."""
    aborted: tuple[PublishRow, ...]
    """Publishes that were cut off before, and were given up now."""
    waiting: tuple[PublishRow, ...]
    """Publishes that may be alive, and were left alone."""
    orphan_blobs: int
    """Blobs deleted that only publishes that were given up had stored."""
    orphan_size: int
    """Their length in bytes."""
    collections: tuple[OpenCollection, ...]
    """Other turns of garbage collection that did not come to an end."""
