"""Copying one snapshot from registry to registry, safe from the garbage collectors of both.

In the source, a lock holds the snapshot. In the target, the publish log begins with the whole manifest: from then on a
collector there counts its blobs as needed. Blobs keep their names, so one that a collector decided on before is looked
for after that, and never created in front of it. Until the commit nobody sees anything; an interrupted copy is gone on
with by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from daskinfer.errors import Conflict, CorruptBlob, StorageError
from daskinfer.ids import make_nonce, shorten
from daskinfer.spec.snapshot import LayerGroup, Manifest, PlainFile
from daskinfer.storage.objects.create_if_absent import create_stream
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, list_names, read_record
from daskinfer.storage.objects.local_files import clear_temporaries
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.streams import Stream, read_pieces
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import marks
from daskinfer.storage.registry.heartbeats import TTL_SECONDS, beat, try_beat
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.storage.registry.manifests import parse_manifest
from daskinfer.storage.registry.publishing.publications import (
    list_publications,
    publish_log,
    pulse_url,
    read_publication,
)
from daskinfer.storage.registry.publishing.publish import finish
from daskinfer.storage.tensors.range_reads import DAMAGED

_COLLECTOR_SECONDS = 10.0


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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> source, target = make_registry("source", versions=1), Registry("target")
    >>> records = [slot.record for slot in source.versions_log("mini").read()]
    >>> copy_snapshot(source, target, source.resolve("mini").snapshot, records, lambda size: None)
    >>> target.resolve("mini").snapshot == source.resolve("mini").snapshot
    True
    """
    lock = locks.take(source, snapshot, f"sync-{make_nonce()}", purpose="sync")
    try:
        manifest = lock.manifest
        identity = _begin(target, manifest)
        log, pulse = publish_log(target, identity), _Pulse(lock, pulse_url(target, identity))
        _await_collectors(target, manifest)
        for path, piece in {piece.blob: piece for piece in manifest.pieces if piece.blob is not None}.items():
            _copy_blob(join_url(source.url, path), join_url(target.url, path), piece, pulse, count)
        commit = {"op": "commit", "manifest": manifest.model_dump(mode="json"), "versions": list(versions)}
        commit |= make_signature()
        try:
            authorised_writes.append(Decision(target.url, "publish", f"publish/{identity}"), log, commit, expect=1)
        except Conflict as error:
            head = log.head()
            if head is None or head.record["op"] != "commit":  # another sync of this snapshot is as good
                raise StorageError(
                    f"copying {shorten(snapshot)} to {target.url} took so long that garbage collection gave it up",
                    hint="Run the same command again.",
                ) from error
            commit = head.record
        finish(target, identity, commit)
        for blob in manifest.blobs:
            clear_temporaries(join_url(target.url, blob))
    finally:
        lock.release()


def find_collector(registry: Registry, manifest: Manifest) -> str | None:
    """Return which unfinished deletion could still take blobs of this manifest; None where none could.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> find_collector(registry, registry.manifest(registry.resolve("mini").snapshot)) is None
    True
    """
    blobs = set(manifest.blobs)
    life = join_url(registry.url, "life")
    for name in list_names(life):
        if _is_pending([slot.record for slot in SlotLog(join_url(life, name)).read()], "sweep"):
            theirs = _recall_blobs(registry, name)
            if theirs is None or theirs & blobs:
                return f"life/{name}"
    for publication in list_publications(registry):
        if publication.state != "aborted" or not _is_pending(publication.records, "abort"):
            continue
        copied, identity = publication.manifest, publication.identity
        # Blobs of an ordinary publish end in its id.
        shared = any(path.endswith(f".{identity}") for path in blobs) if copied is None else blobs & copied.blobs.keys()
        if shared:
            return f"publish/{identity}"
    return None


def _begin(target: Registry, manifest: Manifest) -> str:
    """Return the id of this copy: a new one, or that of a copy that was interrupted."""
    for publication in list_publications(target):
        if publication.state == "begun" and publication.manifest == manifest:
            # A collector that took it for dead must see that it lives before we look whether it did.
            beat(pulse_url(target, publication.identity))
            now = read_publication(target, publication.identity)
            if now is not None and now.state == "begun":
                return publication.identity
    identity = make_nonce(8)
    begun = {"op": "begin", "name": manifest.model, "manifest": manifest.model_dump(mode="json"), **make_signature()}
    decision = Decision(target.url, "publish", f"publish/{identity}")
    authorised_writes.append(decision, publish_log(target, identity), begun, expect=0)
    return identity


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


def _is_pending(records: Sequence[Mapping[str, Any]], verdict: str) -> bool:
    """Whether a deletion was decided and may still be going on."""
    operations = {record["op"] for record in records}
    return verdict in operations and ("collecting" not in operations or bool(marks.find_open(records)))


def _recall_blobs(registry: Registry, name: str) -> set[str] | None:
    """Return the blobs of a deleted snapshot, from whatever still tells; None where nothing does."""
    url = join_url(registry.url, "manifests", f"{name}.json")
    try:
        data = read_record(url, LARGEST_MANIFEST)
    except FileNotFoundError:
        publishes = join_url(registry.url, "publish")
        for identity in list_names(publishes):
            publication = None if "." in identity else read_publication(registry, identity)
            found = None if publication is None else publication.manifest
            if found is not None and found.digest == f"sha256:{name}":
                return set(found.blobs)
        return None
    return set(parse_manifest(data, url).blobs)


def _copy_blob(
    origin: str, copy: str, piece: PlainFile | LayerGroup, pulse: _Pulse, count: Callable[[int], None]
) -> None:
    def read() -> Iterator[bytes]:
        try:
            for data in read_pieces(origin, 0, piece.size):
                pulse.beat()
                count(len(data))
                yield data
        except (FileNotFoundError, ShortRead) as error:  # else it would pass for something about the new object
            raise CorruptBlob(str(error)) from error

    try:
        created = create_stream(copy, Stream(piece.size, piece.sha256, read))
    except CorruptBlob as error:
        raise CorruptBlob(f"{origin} is gone or damaged: {error.message}", hint=DAMAGED) from error
    if not created:
        raise CorruptBlob(
            f"{copy} is there with other bytes",
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
