from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError, CorruptBlob, SnapshotGone, StorageError
from daskinfer.ids import shorten
from daskinfer.spec.collection import CollectionReport
from daskinfer.storage.blobs import read_group
from daskinfer.storage.filesystem import delete, find_files, list_names
from daskinfer.storage.registry import collection, deletion, locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import collect
from daskinfer.storage.registry.heartbeats import Watcher, beat
from daskinfer.storage.registry.publishing import publish
from daskinfer.storage.registry.retention import Retention
from daskinfer.storage.registry.verdicts import Verdicts
from daskinfer.storage.registry.versions import unyank, yank
from daskinfer.storage.urls import join_url
from daskinfer.testing.checkpoints import make_checkpoint
from daskinfer.testing.registries import LAST, NOTHING, VirtualTime, check_registry
from daskinfer.testing.stores import race


def make_registry(url: str | Path, versions: int = 4, alias: str | None = None) -> tuple[Registry, list[str]]:
    registry = Registry(str(url))
    return registry, [publish(registry, "mini", make_checkpoint(seed), alias).snapshot for seed in range(versions)]


def deleted(report: CollectionReport) -> list[str]:
    return [row.snapshot for row in report.deleted]


def test_what_nothing_keeps_is_deleted(any_store: str) -> None:
    registry, snapshots = make_registry(any_store)
    registry.set_alias("mini", "prod", "v2")
    sizes = find_files(join_url(registry.url, "blobs"))
    expected = collect(registry, LAST, dry_run=True)
    assert find_files(join_url(registry.url, "blobs")) == sizes and registry.life(snapshots[0]) == "live"
    report = collect(registry, LAST)
    assert report == expected.model_copy(update={"dry_run": False})
    assert deleted(report) == [snapshots[0], snapshots[2]]
    assert [row.versions for row in report.deleted] == [("mini v1",), ("mini v3",)]
    left = find_files(join_url(registry.url, "blobs"))
    assert (report.blobs, report.size) == (len(sizes) - len(left), sum(sizes.values()) - sum(left.values()))
    assert {row.snapshot: row.reasons for row in report.kept} == {
        snapshots[1]: ("alias mini@prod",),
        snapshots[3]: ("among the last 1 of mini",),
    }
    check_registry(registry)
    for snapshot in deleted(report):
        assert registry.life(snapshot) == "swept"
        with pytest.raises(SnapshotGone):
            registry.manifest(snapshot)
        with pytest.raises(SnapshotGone, match="swept"):
            locks.take(registry, snapshot, "job")
    assert deleted(collect(registry, LAST)) == []


def test_rules_keep(tmp_path: Path) -> None:
    registry, snapshots = make_registry(tmp_path, 5)
    publish(registry, "other", make_checkpoint(9), None)
    assert deleted(collect(registry)) == []  # all are younger than a day
    report = collect(registry, Retention(keep_days=0), dry_run=True)
    assert deleted(report) == snapshots[:2]
    reasons = {row.snapshot: row.reasons for row in collect(registry, dry_run=True).kept}
    assert reasons[snapshots[0]] == ("younger than 1 days",)
    # What was yanked does not count, unless that was taken back.
    for target in ("v5", "v4"):
        yank(registry, "mini", target)
    unyank(registry, "mini", "v4")
    assert deleted(collect(registry, Retention(keep_days=0), dry_run=True)) == [snapshots[0], snapshots[4]]
    assert deleted(collect(registry, Retention(keep_versions=1, keep_days=0))) == [*snapshots[:3], snapshots[4]]
    # Neither does what was deleted.
    registry, snapshots = make_registry(tmp_path / "second", 3)
    registry.life_log(snapshots[2]).append({"op": "condemn"})
    registry.life_log(snapshots[2]).append({"op": "sweep"})
    assert deleted(collect(registry, LAST)) == [snapshots[0], snapshots[2]]
    check_registry(registry)


def test_a_job_keeps_its_snapshot(tmp_path: Path) -> None:
    registry, (first, _) = make_registry(tmp_path, 2)
    lock = locks.take(registry, first, "job-1")
    for dry_run in (True, False):
        report = collect(registry, LAST, dry_run=dry_run)
        assert deleted(report) == []
        (row,) = [row for row in report.kept if row.snapshot == first]
        (holder,) = row.holders
        assert (holder.job, holder.purpose, holder.ttl_seconds, row.reasons) == ("job-1", "run", 900, ())
        assert "@" in holder.by and holder.since and holder.heartbeat_age is not None
    lock.check()
    for group in lock.manifest.groups:
        read_group(registry.url, group)
    lock.release()
    assert deleted(collect(registry, LAST)) == [first]


def test_only_silence_for_its_whole_time_to_live_kills(tmp_path: Path) -> None:
    registry, (first, _) = make_registry(tmp_path, 2)
    lock = locks.take(registry, first, "job-1", ttl_seconds=60)
    living = VirtualTime(lock.heartbeat)
    assert deleted(collect(registry, LAST, wait=True, watcher=living.watcher())) == []
    assert living.now < 60
    # Whoever beats in the last moment lives.
    late = VirtualTime()
    late.meanwhile = lambda: lock.heartbeat() if 50 < late.now < 60 else None
    assert deleted(collect(registry, LAST, wait=True, watcher=late.watcher())) == []
    silent = VirtualTime()
    report = collect(registry, LAST, wait=True, watcher=silent.watcher())
    assert deleted(report) == [first] and 60 <= silent.now < 70
    assert find_files(f"{tmp_path}/locks") == {}
    check_registry(registry)
    with pytest.raises(SnapshotGone, match="job-1 held it"):
        lock.check()
    lock.heartbeat()  # what a paused job may still do
    assert deleted(collect(registry, LAST)) == []


def test_whoever_beats_after_the_watch_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is resumed between the verdict and the condemnation shows a new heartbeat."""
    registry, (first, _) = make_registry(tmp_path, 2)
    locks.take(registry, first, "job-1", ttl_seconds=1)
    condemn = collection._condemn

    def resume_then_condemn(registry: Registry, snapshot: str, begin: bool) -> int | None:
        sequence = condemn(registry, snapshot, begin)
        beat(locks.heartbeat_url(registry, snapshot, "job-1"))
        return sequence

    monkeypatch.setattr(collection, "_condemn", resume_then_condemn)
    report = collect(registry, LAST, wait=True, watcher=VirtualTime().watcher())
    assert deleted(report) == []
    assert [slot.record["op"] for slot in registry.life_log(first).read()] == ["condemn", "live"]


def test_the_dead_can_be_named(tmp_path: Path) -> None:
    registry, (first, second, _) = make_registry(tmp_path, 3)
    locks.take(registry, first, "job-1")
    locks.take(registry, second, "job-2")
    with pytest.raises(CheckpointError, match="job-3 holds nothing") as wrong:
        collect(registry, LAST, assume_dead=["job-3"])
    assert wrong.value.hint and "Did you mean" in wrong.value.hint
    assert deleted(collect(registry, LAST, assume_dead=["job-2"], dry_run=True)) == [second]
    assert deleted(collect(registry, LAST, assume_dead=["job-2"])) == [second]
    assert registry.life(first) == "live"


def test_an_alias_that_moves_meanwhile_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = make_registry(tmp_path, 2)
    condemn = collection._condemn

    def move_then_condemn(found: Registry, snapshot: str, begin: bool) -> int | None:
        registry.set_alias("mini", "prod", "v1")
        return condemn(found, snapshot, begin)

    monkeypatch.setattr(collection, "_condemn", move_then_condemn)
    assert deleted(collect(registry, LAST)) == []
    assert registry.resolve("mini@prod").version == 1
    check_registry(registry)


def test_shared_blobs_go_with_the_last_who_names_them(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    base, other = make_checkpoint(0), make_checkpoint(1)
    first = publish(registry, "mini", base, None).snapshot
    second = publish(registry, "mini", replace(base, groups=[*base.groups[:2], other.groups[2]]), None).snapshot
    third = publish(registry, "mini", replace(base, groups=[*base.groups[:1], *other.groups[1:]]), None).snapshot
    for keep, gone in ((2, first), (1, second)):
        report = collect(registry, Retention(keep_versions=keep, keep_days=0))
        assert deleted(report) == [gone] and report.blobs == 1
        check_registry(registry)
    assert deleted(collect(registry, NOTHING)) == [third]
    assert find_files(join_url(registry.url, "blobs")) == {}
    assert list_names(join_url(registry.url, "manifests")) == []


def test_a_damaged_manifest_stops_everything(tmp_path: Path) -> None:
    registry, (first, second) = make_registry(tmp_path, 2)
    path = Path(registry.manifest_url(second))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b" ")
    with pytest.raises(CorruptBlob, match="nobody can tell which blobs") as damage:
        collect(registry, LAST)
    assert damage.value.hint and "Restore" in damage.value.hint
    assert registry.life(first) == "live"
    path.write_bytes(whole)
    assert deleted(collect(registry, LAST)) == [first]


class Died(BaseException):
    """The end of a process: nothing that it still does gets through."""


def test_a_collector_may_die_anywhere(tmp_path: Path) -> None:
    """After each exclusive create and each deletion in turn."""
    for last in range(40):
        registry, (first, second) = make_registry(tmp_path / str(last), 2)
        left = [last]

        def step(call: Callable[..., None], *words: object, left: list[int] = left) -> None:
            if left[0] < 0:
                raise Died
            call(*words)
            left[0] -= 1
            if left[0] < 0:
                raise Died

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.link", partial(step, os.link))
            patch.setattr(deletion, "delete", partial(step, delete))
            died = False
            try:
                collect(registry, LAST)
            except Died:
                died = True
        collect(registry, LAST)
        assert registry.life(first) == "swept" and registry.life(second) == "live"
        check_registry(registry)
        if not died:
            break
    assert not died and last > 8


def test_a_condemnation_that_was_left_behind_is_withdrawn(tmp_path: Path) -> None:
    registry, (first, second) = make_registry(tmp_path, 2)
    for snapshot in (first, second):
        registry.life_log(snapshot).append({"op": "condemn"})
    report = collect(registry, LAST)
    assert deleted(report) == [first]
    assert registry.life(second) == "live"
    locks.take(registry, second, "job-1")


def test_an_interrupted_decision_is_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, (first, second, _) = make_registry(tmp_path, 3)

    def interrupt(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "find_keepers", interrupt)
    survey = collection._Survey([first, second], [], set(), {}, {first: [], second: []}, [], {})
    with pytest.raises(KeyboardInterrupt):
        collection._decide(registry, LAST, survey, Verdicts(registry, Watcher()))
    assert [registry.life(first), registry.life(second)] == ["live", "live"]


def test_an_open_collection_is_told_of_and_can_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, (first, _) = make_registry(tmp_path, 2)

    def fail(url: str) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(deletion, "delete", fail)
    with pytest.raises(StorageError, match="is away"):
        collect(registry, LAST)
    monkeypatch.undo()
    report = collect(registry, LAST)
    assert deleted(report) == [first]
    (left,) = report.collections
    assert left.collector.startswith("gc-") and "@" in left.by
    assert collect(registry, LAST, assume_dead=[left.collector]).collections == ()
    assert collect(registry, LAST).collections == ()


def test_many_collectors_at_once(any_store: str) -> None:
    registry, snapshots = make_registry(any_store, 3)
    reports = race(lambda number: collect(Registry(any_store), LAST), writers=3)
    assert {snapshot for report in reports for snapshot in deleted(report)} == set(snapshots[:-1])
    check_registry(registry)
    for snapshot in snapshots[:-1]:
        operations = [slot.record["op"] for slot in registry.life_log(snapshot).read()]
        assert operations.count("sweep") == 1
        assert operations.count("collecting") == operations.count("collected") >= 1


def test_an_empty_registry_stays_empty(tmp_path: Path) -> None:
    report = collect(Registry(str(tmp_path / "none")), NOTHING)
    assert (report.deleted, report.kept, report.blobs) == ((), (), 0)
    assert not (tmp_path / "none").exists()


def test_what_was_deleted_is_not_taken_for_damaged(tmp_path: Path) -> None:
    registry, (first, _) = make_registry(tmp_path, 2)
    manifest = registry.manifest(first)
    collect(registry, LAST)
    with pytest.raises(SnapshotGone, match=f"{shorten(first)} was deleted"):
        registry.file(manifest, "vocab.txt")
    with pytest.raises(SnapshotGone), locks.explain_loss(registry, first):
        read_group(registry.url, manifest.groups[0])
