"""Snapshot locks: a job's lease on a checkpoint, which garbage collection respects.

The order is the safety: the lock is written first, and only then is the snapshot's life read. Garbage collection
condemns first, then lists the locks, and after them the alias heads; so at least one of the two sees the other.
A heartbeat is a value that changes: a collector judges it by its own clock, and no two clocks are ever compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from daskinfer.errors import CheckpointError, IntegrityError, SnapshotGone
from daskinfer.ids import canonical_json, make_nonce, shorten
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.filesystem import delete, join_url, list_names, read_bytes, replace_bytes
from daskinfer.storage.naming import check_name, make_signature
from daskinfer.storage.registry.decisions import Decision, create_record

if TYPE_CHECKING:
    from daskinfer.storage.registry.catalog import Registry

TTL_SECONDS = 900
"""How long a heartbeat may stay unchanged before a collector may take the job for dead."""

_VERDICT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SnapshotLock:
    """A lock that is held; the manifest was verified under it."""

    url: str
    """Folder of the snapshot's locks."""
    snapshot: str
    """Snapshot digest."""
    job: str
    """Who holds it."""
    manifest: Manifest
    """What it protects."""

    def heartbeat(self) -> None:
        """Show that the holder lives; call it every quarter of `TTL_SECONDS`."""
        _beat(self.url, self.job)

    def release(self) -> None:
        """Give the snapshot up; twice does no harm."""
        _remove(self.url, self.job)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a snapshot."""

    job: str
    """Job id."""
    purpose: str
    """What for."""
    by: str
    """user@host."""
    since: str
    """ISO 8601, UTC."""
    ttl_seconds: int
    """How long its heartbeat may stay unchanged."""
    beat: str | None
    """The heartbeat: compare it with an earlier one. None before the first."""


def take(
    registry: Registry, snapshot: str, job: str, *, purpose: str = "run", ttl_seconds: int = TTL_SECONDS
) -> SnapshotLock:
    """Lock a snapshot for a job, then make sure that it lives and is whole.

    Taking it again for the same job, as a resume does, keeps the lock that is there.

    Raises
    ------
    SnapshotGone
        Where the snapshot is deleted, or garbage collection is about to.
    CorruptBlob
        Where its manifest is damaged.
    """
    url = _locks_url(registry, snapshot)
    record = {"job": job, "purpose": purpose, "ttl_seconds": ttl_seconds, "nonce": make_nonce(), **make_signature()}
    decision = Decision(registry.url, "lock", f"locks/{shorten(snapshot, 64)}/{check_name(job, 'job')}")
    fresh = create_record(decision, join_url(url, f"{job}.json"), canonical_json(record))
    try:
        # A collector that gave the old heartbeat up for dead must see a new one before we look at its verdict.
        _beat(url, job)
        life = _await_verdict(registry, snapshot)
        if life != "live":
            raise SnapshotGone(
                f"snapshot {shorten(snapshot)} of registry {registry.url} is {life}: garbage collection took it",
                hint="Publish the checkpoint again, or choose another version: daskinfer checkpoint list",
            )
        manifest = registry.manifest(snapshot)
    except SnapshotGone:
        _remove(url, job)
        raise
    except CheckpointError as error:
        _remove(url, job)
        raise SnapshotGone(error.message, hint=error.hint) from error
    except BaseException:
        if fresh:
            _remove(url, job)
        raise
    return SnapshotLock(url, snapshot, job, manifest)


def release(registry: Registry, snapshot: str, job: str) -> None:
    """Give up a lock that this job, in an earlier life, may have left behind."""
    _remove(_locks_url(registry, snapshot), check_name(job, "job"))


def list_holders(registry: Registry, snapshot: str) -> list[LockHolder]:
    """Return who holds a snapshot, dead or alive, by job."""
    url = _locks_url(registry, snapshot)
    holders = []
    for name in list_names(url):
        if not name.endswith(".json"):
            continue
        job = name.removesuffix(".json")
        try:
            record = json.loads(read_bytes(join_url(url, name)))
            beat = _read_beat(url, job)
            holder = LockHolder(job, record["purpose"], record["by"], record["at"], record["ttl_seconds"], beat)
        except FileNotFoundError:
            continue  # released since it was listed
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{join_url(url, name)} is not a lock", hint="The file was changed by hand."
            ) from error
        holders.append(holder)
    return holders


def _await_verdict(registry: Registry, snapshot: str) -> str:
    # A collector that sees our lock withdraws its condemnation; a dead one never does.
    waiting = Retrying(
        retry=retry_if_result(lambda life: life == "condemned"),
        wait=wait_fixed(0.25),
        stop=stop_after_delay(_VERDICT_SECONDS),
        retry_error_callback=lambda state: "condemned",
    )
    return str(waiting(registry.life, snapshot))


def _locks_url(registry: Registry, snapshot: str) -> str:
    return join_url(registry.url, "locks", shorten(snapshot, 64))


def _beat(url: str, job: str) -> None:
    replace_bytes(join_url(url, f"{job}.hb"), make_nonce().encode())


def _read_beat(url: str, job: str) -> str | None:
    try:
        return read_bytes(join_url(url, f"{job}.hb")).decode()
    except FileNotFoundError:
        return None


def _remove(url: str, job: str) -> None:
    # The record goes last: a lock without a heartbeat is still a lock.
    delete(join_url(url, f"{job}.hb"))
    delete(join_url(url, f"{job}.json"))
