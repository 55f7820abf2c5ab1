"""Copying one snapshot from registry to registry, safe from the garbage collectors of both.

In the source, a lock holds the snapshot. In the target, the publish log begins with the whole manifest: from then on a
collector there counts its blobs as needed. Blobs keep their names, so one that a collector decided on before is looked
for after that, and never created in front of it. Until the commit nobody sees anything; an interrupted copy is gone on
with by the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from daskinfer.errors import Conflict, CorruptBlob, StorageError
from daskinfer.ids import make_nonce, shorten
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.exclusive import create_stream
from daskinfer.storage.filesystem import ShortRead, delete, join_url, list_names, read_bytes, replace_bytes
from daskinfer.storage.naming import make_signature
from daskinfer.storage.registry import decisions, locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.decisions import Decision
from daskinfer.storage.registry.heartbeats import TTL_SECONDS, try_beat
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.storage.registry.publishing import finish
from daskinfer.storage.slotlog import SlotLog
from daskinfer.storage.streams import Stream, read_pieces
from daskinfer.storage.tensorreads import DAMAGED

_COLLECTOR_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of a snapshot."""

    path: str
    """Relative to the registry."""
    size: int
    """Length in bytes."""
    sha256: str
    """64 hex digits."""


def list_blobs(manifest: Manifest) -> list[Blob]:
    """Return the blobs that a snapshot consists of; what it refers to is none."""
    files = [Blob(piece.blob, piece.size, piece.sha256) for piece in manifest.files]
    return files + [Blob(group.blob, group.size, group.sha256) for group in manifest.groups if group.blob is not None]


def copy_snapshot(
    source: Registry,
    target: Registry,
    snapshot: str,
    versions: Sequence[dict[str, Any]],
    count: Callable[[int], None],
) -> None:
    """Copy a snapshot that the target does not have.

    Parameters
    ----------
    source, target
        From where to where.
    snapshot
        Its digest, which stays.
    versions
        Records of the publishes that made it in the source: they become versions of the target.
    count
        Told of every number of bytes that was copied.

    Raises
    ------
    SnapshotGone
        Where garbage collection took it from the source.
    CorruptBlob
        Where the source is damaged.
    StorageError
        Where garbage collection in the target is in the way, or a store refuses.
    """
    lock = locks.take(source, snapshot, f"sync-{make_nonce()}", purpose="sync")
    try:
        manifest = lock.manifest
        log = _begin(target, manifest)
        identity = log.url.rpartition("/")[2]
        pulse = _Pulse(lock, f"{log.url}.hb")
        _await_collectors(target, manifest)
        for blob in list_blobs(manifest):
            _copy_blob(source, target, blob, pulse, count)
        commit = {"op": "commit", "manifest": manifest.model_dump(mode="json"), "versions": list(versions)}
        commit |= make_signature()
        try:
            decisions.append(Decision(target.url, "publish", f"publish/{identity}"), log, commit, expect=1)
        except Conflict as error:
            head = log.head()
            if head is None or head.record["op"] != "commit":  # another sync of this snapshot is as good
                raise StorageError(
                    f"copying {shorten(snapshot)} to {target.url} took so long that garbage collection gave it up",
                    hint="Run the same command again.",
                ) from error
            commit = head.record
        finish(target, identity, commit)
        delete(f"{log.url}.hb")
    finally:
        lock.release()


def find_collector(registry: Registry, manifest: Manifest) -> str | None:
    """Return which unfinished deletion could still take blobs of this manifest; None where none could."""
    blobs = {blob.path for blob in list_blobs(manifest)}
    life = join_url(registry.url, "life")
    for name in list_names(life):
        if _is_pending(SlotLog(join_url(life, name)), "sweep"):
            theirs = _recall_blobs(registry, name)
            if theirs is None or theirs & blobs:
                return f"life/{name}"
    publishes = join_url(registry.url, "publish")
    names = list_names(publishes)
    for name in names:
        if (
            "." in name
            or f"{name}.done" in names
            or not _is_pending(log := SlotLog(join_url(publishes, name)), "abort")
        ):
            continue
        begun = log.read()[0].record.get("manifest")
        # Blobs of an ordinary publish end in its id.
        shared = any(path.endswith(f".{name}") for path in blobs) if begun is None else blobs & _read_paths(begun)
        if shared:
            return f"publish/{name}"
    return None


def _begin(target: Registry, manifest: Manifest) -> SlotLog:
    """Return the publish log of this copy: a new one, or that of a copy that was interrupted."""
    folder = join_url(target.url, "publish")
    names = list_names(folder)
    begun = manifest.model_dump(mode="json")
    for name in names:
        if "." in name or f"{name}.done" in names:
            continue
        log = SlotLog(join_url(folder, name))
        head = log.head()
        if head is None or head.record["op"] != "begin" or head.record.get("manifest") != begun:
            continue
        # A collector that took it for dead must see that it lives before we look whether it did.
        replace_bytes(f"{log.url}.hb", make_nonce().encode())
        head = log.head()
        if head is not None and head.record["op"] == "begin":
            return log
    identity = make_nonce(8)
    log = SlotLog(join_url(folder, identity))
    record = {"op": "begin", "name": manifest.model, "manifest": begun, **make_signature()}
    decisions.append(Decision(target.url, "publish", f"publish/{identity}"), log, record, expect=0)
    return log


def _await_collectors(target: Registry, manifest: Manifest) -> None:
    waiting = Retrying(
        retry=retry_if_result(lambda found: found is not None),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(_COLLECTOR_SECONDS),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    if found := waiting(find_collector, target, manifest):
        raise StorageError(
            f"garbage collection in {target.url} has not finished with blobs that {shorten(manifest.digest)} needs: "
            f"{found}",
            hint=f"Let it end, or run it again, then sync again: daskinfer checkpoint gc --registry {target.url}",
        )


def _is_pending(log: SlotLog, verdict: str) -> bool:
    """Say whether a deletion was decided and may still be going on."""
    records = [slot.record for slot in log.read()]
    if not any(record["op"] == verdict for record in records):
        return False
    begun = {record["by"] for record in records if record["op"] == "collecting"}
    return not begun or bool(begun - {record["by"] for record in records if record["op"] == "collected"})


def _recall_blobs(registry: Registry, name: str) -> set[str] | None:
    """Return the blobs of a deleted snapshot, from whatever still tells; None where nothing does."""
    try:
        return _read_paths(json.loads(read_bytes(join_url(registry.url, "manifests", f"{name}.json"))))
    except FileNotFoundError:
        publishes = join_url(registry.url, "publish")
        for publish in list_names(publishes):
            for slot in [] if "." in publish else SlotLog(join_url(publishes, publish)).read():
                found = slot.record.get("manifest")
                if found is not None and Manifest.model_validate(found).digest == f"sha256:{name}":
                    return _read_paths(found)
    return None


def _read_paths(manifest: dict[str, Any]) -> set[str]:
    return {blob.path for blob in list_blobs(Manifest.model_validate(manifest))}


def _copy_blob(source: Registry, target: Registry, blob: Blob, pulse: _Pulse, count: Callable[[int], None]) -> None:
    origin = join_url(source.url, blob.path)

    def read() -> Iterator[bytes]:
        for piece in read_pieces(origin, 0, blob.size):
            pulse.beat()
            count(len(piece))
            yield piece

    try:
        created = create_stream(join_url(target.url, blob.path), Stream(blob.size, blob.sha256, read))
    except (CorruptBlob, FileNotFoundError, ShortRead) as error:
        raise CorruptBlob(f"{origin} is gone or damaged: {error}", hint=DAMAGED) from error
    if not created:
        raise CorruptBlob(
            f"{join_url(target.url, blob.path)} is there with other bytes",
            hint="Look it over: daskinfer checkpoint verify --deep; delete that file, then sync again.",
        )


@dataclass(slots=True)
class _Pulse:
    """Shows both registries' collectors that the copy lives."""

    lock: SnapshotLock
    url: str
    last: float = field(default=-float("inf"))

    def beat(self) -> None:
        now = time.monotonic()
        if now - self.last >= TTL_SECONDS / 8:
            self.last = now
            self.lock.heartbeat()
            try_beat(self.url)
