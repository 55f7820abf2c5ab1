"""Snapshot locks: a job's lease on a checkpoint, which garbage collection respects.

The order is the safety: the lock is written first, and only then is the snapshot's life read. Garbage collection
condemns first, then lists the locks, and after them the alias heads; so at least one of the two sees the other.
A heartbeat is a value that changes: a collector judges it by its own clock, and no two clocks are ever compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from daskinfer.errors import CheckpointError, IntegrityError, SnapshotGone
from daskinfer.ids import canonical_json, make_nonce, parse_json, shorten
from daskinfer.knobs import VERDICT_SECONDS
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import delete, list_names, read_record
from daskinfer.storage.objects.naming import check_name, make_signature
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access.authorised_writes import Decision, create_record
from daskinfer.storage.registry.catalog import _PUBLISH_AGAIN, Registry
from daskinfer.storage.registry.heartbeats import TTL_SECONDS, beat, read_beat


@dataclass(frozen=True, slots=True)
class SnapshotLock:
    """A lock that is held; the manifest was verified under it."""

    registry: Registry
    """Where the snapshot is."""
    snapshot: str
    """Snapshot digest."""
    job: str
    """Who holds it."""
    manifest: Manifest
    """What it protects."""

    def heartbeat(self) -> None:
        """Show that the holder lives; call it every quarter of `TTL_SECONDS`."""
        beat(heartbeat_url(self.registry, self.snapshot, self.job))

    def check(self) -> None:
        """Make sure that the snapshot is still there: a holder that was silent for too long may have been given up.

        Raises
        ------
        SnapshotGone
            Garbage collection took it. Stop; what was read before was right.
        """
        if self.registry.life(self.snapshot) == "swept":
            self.release()
            raise SnapshotGone(
                f"snapshot {shorten(self.snapshot)} of registry {self.registry.url} was deleted while {self.job} held it: "
                "garbage collection took the job for dead",
                hint=_PUBLISH_AGAIN,
            )

    def release(self) -> None:
        """Give the snapshot up; twice does no harm."""
        remove(self.registry, self.snapshot, self.job)


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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> lock = take(registry, registry.resolve("mini").snapshot, "demo")
    >>> [holder.job for holder in list_holders(registry, lock.snapshot)]
    ['demo']
    >>> lock.release()
    """
    fresh = reserve(registry, snapshot, job, purpose=purpose, ttl_seconds=ttl_seconds)
    try:
        manifest = registry.manifest(snapshot)
    except CheckpointError as error:
        if fresh:
            remove(registry, snapshot, job)
        raise SnapshotGone(error.message, hint=error.hint) from error
    except BaseException:
        if fresh:
            remove(registry, snapshot, job)
        raise
    return SnapshotLock(registry, snapshot, job, manifest)


def reserve(registry: Registry, snapshot: str, job: str, *, purpose: str, ttl_seconds: int = TTL_SECONDS) -> bool:
    """Keep a snapshot from being deleted, whether it is there yet or not; say whether the lock is a new one.

    Raises
    ------
    SnapshotGone
        Where the snapshot is deleted, or garbage collection is about to.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> [reserve(registry, "sha256:" + "ab" * 32, "demo", purpose="publish") for _ in range(2)]
    [True, False]
    """
    record = {"job": job, "purpose": purpose, "ttl_seconds": ttl_seconds, "nonce": make_nonce(), **make_signature()}
    decision = Decision(registry.url, "lock", f"locks/{shorten(snapshot, 64)}/{check_name(job, 'job')}")
    fresh = create_record(decision, join_url(_locks_url(registry, snapshot), f"{job}.json"), canonical_json(record))
    try:
        # A collector that gave the old heartbeat up for dead must see a new one before we look at its verdict.
        beat(heartbeat_url(registry, snapshot, job))
        life = _await_verdict(registry, snapshot)
        if life == "condemned":
            raise SnapshotGone(
                f"snapshot {shorten(snapshot)} of registry {registry.url} is condemned: garbage collection is deciding",
                hint="Try again in a minute; if that goes on, a collector died: run daskinfer checkpoint gc",
            )
        if life == "swept":
            fresh = True  # nothing is left that an earlier lock of this job could protect
            raise SnapshotGone(
                f"snapshot {shorten(snapshot)} of registry {registry.url} is swept: garbage collection took it",
                hint=_PUBLISH_AGAIN,
            )
    except BaseException:
        if fresh:
            remove(registry, snapshot, job)
        raise
    return fresh


def list_holders(registry: Registry, snapshot: str) -> list[LockHolder]:
    """Return who holds a snapshot, dead or alive, by job.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> _ = reserve(registry, "sha256:" + "ab" * 32, "demo", purpose="run")
    >>> [(holder.job, holder.purpose, holder.ttl_seconds) for holder in list_holders(registry, "sha256:" + "ab" * 32)]
    [('demo', 'run', 900)]
    """
    url = _locks_url(registry, snapshot)
    holders = []
    for name in list_names(url):
        if not name.endswith(".json"):
            continue
        job = name.removesuffix(".json")
        try:
            record = parse_json(read_record(join_url(url, name)))
            value = read_beat(heartbeat_url(registry, snapshot, job))
            holder = LockHolder(job, record["purpose"], record["by"], record["at"], record["ttl_seconds"], value)
        except FileNotFoundError:
            continue  # released since it was listed
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{join_url(url, name)} is not a lock",
                hint="It was damaged or changed by hand: put it back, or delete it where its job is over.",
            ) from error
        holders.append(holder)
    return holders


def heartbeat_url(registry: Registry, snapshot: str, job: str) -> str:
    """Return where a holder's heartbeat is.

    Examples
    --------
    >>> heartbeat_url(Registry("/registry"), "sha256:ab", "demo")
    '/registry/locks/ab/demo.hb'
    """
    return join_url(_locks_url(registry, snapshot), f"{job}.hb")


def remove(registry: Registry, snapshot: str, job: str) -> None:
    """Remove a lock, one's own or a dead one's.

    Examples
    --------
    >>> registry, snapshot = Registry("registry"), "sha256:" + "ab" * 32
    >>> _ = reserve(registry, snapshot, "demo", purpose="run")
    >>> remove(registry, snapshot, "demo")
    >>> list_holders(registry, snapshot)
    []
    """
    # The record goes last: a lock without a heartbeat is still a lock.
    delete(heartbeat_url(registry, snapshot, job))
    delete(join_url(_locks_url(registry, snapshot), f"{job}.json"))


def _await_verdict(registry: Registry, snapshot: str) -> str:
    # A collector that sees our lock withdraws its condemnation; a dead one never does.
    waiting = Retrying(
        retry=retry_if_result(lambda life: life == "condemned"),
        wait=wait_fixed(0.25),
        stop=stop_after_delay(VERDICT_SECONDS.get()),
        retry_error_callback=lambda state: "condemned",
    )
    return str(waiting(registry.life, snapshot))


def _locks_url(registry: Registry, snapshot: str) -> str:
    return join_url(registry.url, "locks", shorten(snapshot, 64))
