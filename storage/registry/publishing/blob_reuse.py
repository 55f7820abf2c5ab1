"""What a publish need not store: blobs of a version that is there already and that it holds.

A blob is deleted with the last snapshot that names it, so one may be named again only under a lock on a snapshot that
names it now, held until the new manifest is there to name it too.
"""

from __future__ import annotations

from contextlib import suppress

from daskinfer.errors import CorruptBlob, SnapshotGone
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.locks import SnapshotLock, remove, reserve, take
from daskinfer.storage.tensors.blobs import is_intact

PURPOSE = "base"
"""What such a lock says it is for. It has no heartbeat of its own: it holds as long as its publish may be committed."""


class BlobReuse:
    """The snapshots that a publish takes blobs from.

    Parameters
    ----------
    registry
        Where it publishes to.
    job
        The name that it holds locks by.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> group = registry.manifest(registry.resolve("mini").snapshot).groups[0]
    >>> bases = BlobReuse(registry, "publish-12ab")
    >>> bases.lock("mini", None)
    >>> bases.find(group.sha256, group.size) == group.blob
    True
    >>> bases.release()
    """

    def __init__(self, registry: Registry, job: str) -> None:
        self._registry = registry
        self._job = job
        self._locks: dict[str, SnapshotLock] = {}
        self._blobs: dict[tuple[str, int], str] = {}
        self._reserved: set[str] = set()

    def lock(self, name: str, parent: str | None) -> None:
        """Lock the latest live version of a model, and the snapshot that the new one was made from."""
        if parent is not None:
            self._take(parent)
        for version in reversed(self._registry.versions(name)):
            if self._registry.life(version.snapshot) == "live" and self._take(version.snapshot):
                break

    def find(self, sha256: str, size: int) -> str | None:
        """Return the blob of a base that has this content, undamaged; None where the content must be stored."""
        blob = self._blobs.get((sha256, size))
        if blob is None or not is_intact(join_url(self._registry.url, blob), size, sha256):
            return None
        return blob

    def reserve(self, snapshot: str) -> bool:
        """Keep the snapshot that the publish is to become; False where it was deleted, or is about to be."""
        with suppress(SnapshotGone):
            reserve(self._registry, snapshot, self._job, purpose=PURPOSE)
            self._reserved.add(snapshot)
        return snapshot in self._reserved

    def release(self) -> None:
        """Let go of the bases: the new manifest is there, or never will be."""
        for snapshot in self._reserved - self._locks.keys():
            remove(self._registry, snapshot, self._job)
        for lock in self._locks.values():
            lock.release()

    def _take(self, snapshot: str) -> bool:
        with suppress(SnapshotGone, CorruptBlob):  # also a parent that is in another registry
            lock = self._locks[snapshot] = take(self._registry, snapshot, self._job, purpose=PURPOSE)
            for piece in lock.manifest.pieces:
                if piece.blob is not None:
                    self._blobs[piece.sha256, piece.size] = piece.blob
        return snapshot in self._locks
