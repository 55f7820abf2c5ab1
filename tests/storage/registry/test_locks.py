from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError, Conflict, CorruptBlob, IntegrityError, SnapshotGone, StorageError
from daskinfer.ids import shorten
from daskinfer.knobs import VERDICT_SECONDS
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.tensors.blobs import read_group
from daskinfer.testing.contracts.stores import race
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, be_full
from daskinfer.testing.fixtures.checkpoints import make_checkpoint


def publish_one(url: str | Path, seed: int = 0) -> tuple[Registry, str]:
    registry = Registry(str(url))
    return registry, publish(registry, "mini", make_checkpoint(seed), None).snapshot


def collect(registry: Registry, snapshot: str) -> bool:
    """What a garbage collector does with one snapshot; True if it deleted it."""
    manifest = registry.manifest(snapshot)
    registry.life_log(snapshot).append({"op": "condemn"})
    if locks.list_holders(registry, snapshot):
        registry.life_log(snapshot).append({"op": "live"})
        return False
    registry.life_log(snapshot).append({"op": "sweep"})
    for blob in [*(piece.blob for piece in manifest.files), *(str(group.blob) for group in manifest.groups)]:
        delete(join_url(registry.url, blob))
    delete(registry.manifest_url(snapshot))
    return True


def test_take_and_release(any_store: str) -> None:
    registry, snapshot = publish_one(any_store)
    lock = locks.take(registry, snapshot, "job-1", ttl_seconds=60)
    assert lock.manifest == registry.manifest(snapshot)
    (holder,) = locks.list_holders(registry, snapshot)
    assert (holder.job, holder.purpose, holder.ttl_seconds) == ("job-1", "run", 60)
    assert "@" in holder.by and holder.beat
    lock.heartbeat()
    assert locks.list_holders(registry, snapshot)[0].beat != holder.beat
    assert not collect(registry, snapshot)
    lock.release()
    lock.release()
    assert locks.list_holders(registry, snapshot) == []
    assert collect(registry, snapshot)


def test_taking_again_keeps_the_lock_and_renews_the_heartbeat(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    locks.take(registry, snapshot, "job-1")
    (before,) = locks.list_holders(registry, snapshot)
    again = locks.take(Registry(str(tmp_path)), snapshot, "job-1")
    (after,) = locks.list_holders(registry, snapshot)
    assert after.since == before.since and after.beat != before.beat
    locks.take(registry, snapshot, "job-2")
    again.release()
    assert [holder.job for holder in locks.list_holders(registry, snapshot)] == ["job-2"]


def test_a_collector_just_before_the_lock_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever checks life before locking passes its check here and then runs without a checkpoint."""
    registry, snapshot = publish_one(tmp_path)

    def collect_then_create(decision: object, url: str, data: bytes) -> bool:
        assert collect(registry, snapshot)
        return create(url, data)

    monkeypatch.setattr(locks, "create_record", collect_then_create)
    with pytest.raises(SnapshotGone, match="swept"):
        locks.take(registry, snapshot, "job-1")
    assert locks.list_holders(registry, snapshot) == []


def test_a_collector_just_after_the_lock_withdraws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, snapshot = publish_one(tmp_path)

    def create_then_collect(decision: object, url: str, data: bytes) -> bool:
        created = create(url, data)
        assert not collect(registry, snapshot)
        return created

    monkeypatch.setattr(locks, "create_record", create_then_collect)
    lock = locks.take(registry, snapshot, "job-1")
    for group in lock.manifest.groups:
        read_group(registry.url, group)


def test_a_condemnation_is_waited_out(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    registry.life_log(snapshot).append({"op": "condemn"})
    withdrawal = threading.Timer(0.4, lambda: registry.life_log(snapshot).append({"op": "live"}))
    withdrawal.start()
    locks.take(registry, snapshot, "job-1")
    withdrawal.join()


@VERDICT_SECONDS.override(0.3)
def test_a_dead_collector_is_not_waited_for(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    registry.life_log(snapshot).append({"op": "condemn"})
    with pytest.raises(SnapshotGone, match="condemned") as gone:
        locks.take(registry, snapshot, "job-1")
    assert gone.value.hint
    assert locks.list_holders(registry, snapshot) == []


@pytest.mark.parametrize("place", ["local", "memory"])
def test_no_holder_ever_misses_a_byte(tmp_path: Path, place: str) -> None:
    registry = Registry(str(tmp_path) if place == "local" else f"memory://{tmp_path.name}")
    outcomes: list[str] = []
    for turn in range(10):
        snapshot = publish(registry, "mini", make_checkpoint(turn), None).snapshot
        delays = [random.Random(turn * 4 + number).uniform(0, 0.02) for number in range(4)]

        def act(number: int, snapshot: str = snapshot, delays: list[float] = delays) -> str:
            time.sleep(delays[number])
            if number == 0:
                return "swept" if collect(registry, snapshot) else "withdrawn"
            try:
                lock = locks.take(registry, snapshot, f"job-{number}")
            except SnapshotGone:
                return "gone"
            time.sleep(0.002)
            for group in lock.manifest.groups:
                read_group(registry.url, group)
            lock.release()
            return "held"

        met = race(act, writers=4)
        # Nobody left a lock behind, so a collector that had to withdraw now gets its way.
        assert "swept" in met or collect(registry, snapshot)
        outcomes += met
    assert "held" in outcomes


def test_what_cannot_be_verified_is_not_locked(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    path = Path(registry.manifest_url(snapshot))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b" ")
    with pytest.raises(CorruptBlob):
        locks.take(registry, snapshot, "job-1")
    path.unlink()
    with pytest.raises(SnapshotGone, match="has no snapshot"):
        locks.take(registry, snapshot, "job-1")
    assert locks.list_holders(registry, snapshot) == []


def test_a_failed_retake_leaves_the_running_jobs_lock(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    locks.take(registry, snapshot, "job-1")
    path = Path(registry.manifest_url(snapshot))
    path.write_bytes(b"{}")
    with pytest.raises(CorruptBlob):
        locks.take(registry, snapshot, "job-1")
    assert [holder.job for holder in locks.list_holders(registry, snapshot)] == ["job-1"]


def test_errors_are_clear(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    with pytest.raises(CheckpointError, match="not allowed as job name"):
        locks.take(registry, snapshot, "../job")
    create(str(tmp_path / "locks" / shorten(snapshot, 64) / "x.json"), b"{")
    with pytest.raises(IntegrityError, match=r"x.json is not a lock"):
        locks.list_holders(registry, snapshot)


@pytest.mark.s3
@pytest.mark.parametrize("step", [0, 2])  # the lock, then after its event the heartbeat
def test_a_store_that_refuses_the_lock_stops_the_job(s3_url: str, step: int) -> None:
    registry, snapshot = publish_one(f"{s3_url}/locks")
    with FaultyFS(s3_url, "pipe_file", be_full, after=step), pytest.raises(StorageError, match="no space left"):
        locks.take(registry, snapshot, "job-1")
    assert locks.list_holders(registry, snapshot) == []


def test_an_alias_cannot_land_on_what_is_being_swept(tmp_path: Path) -> None:
    registry, snapshot = publish_one(tmp_path)
    lock = locks.take(registry, snapshot, "job-1")
    set_alias(registry, "mini", "prod", "v1")
    assert [holder.job for holder in locks.list_holders(registry, snapshot)] == ["job-1"]
    lock.release()
    with pytest.raises(Conflict):
        set_alias(registry, "mini", "prod", "v1", expect=0)
    assert locks.list_holders(registry, snapshot) == []
