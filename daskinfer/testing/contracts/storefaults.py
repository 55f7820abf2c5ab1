"""What must stay true of a store's objects while calls go wrong: at most one winner, nothing lost that was acknowledged.

Subclass `FaultContract` as the contracts of `daskinfer.testing.contracts.stores`; override `schedule` to choose other faults.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import pytest

from daskinfer.errors import Conflict, IntegrityError, JobBusy, SnapshotGone, StorageError
from daskinfer.ids import make_nonce
from daskinfer.storage.jobs.lease import Lease, acquire
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.sink import Sink
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.contracts.sinks import FIELDS, JOB, KEEP, METADATA, PARTITION_ROWS, ROWS, make_part, make_record
from daskinfer.testing.contracts.stores import StoreFixture, race
from daskinfer.testing.faults.faulty_filesystem import FaultSchedule
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.fixtures.registries import NOTHING, VirtualTime, check_registry, read_all

T = TypeVar("T")

RATES: Mapping[str, float] = {
    "drop": 0.02,
    "lose": 0.05,
    "delay": 0.03,
    "conflict": 0.02,
    "busy": 0.001,
    "short": 0.001,
    "stale": 0.1,
}
"""Every fault that a process survives; those that it does not recover from by itself leave most publishes whole."""
FAILURES = (StorageError, IntegrityError, OSError)
"""How a call may end where faults hit it."""
WRITERS = 3

_PATIENCE = 60


def insist(call: Callable[[], T]) -> T:
    """Return what a call gives, tried again where the store failed it: what a user does.

    Examples
    --------
    >>> answers = [OSError("busy"), "done"]
    >>> def call():
    ...     answer = answers.pop(0)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> insist(call)
    'done'
    """
    for _ in range(_PATIENCE):
        try:
            return call()
        except Conflict:
            raise
        except FAILURES:
            time.sleep(random.random() / 100)
    return call()


@pytest.mark.filterwarnings("ignore::daskinfer.errors.MissingEvent")
class FaultContract(StoreFixture):
    """Races under random faults; what came of them is looked at without.

    Examples
    --------
    >>> class TestFaults(FaultContract):
    ...     @pytest.fixture
    ...     def store(self, tmp_path):
    ...         return str(tmp_path)
    """

    @pytest.fixture
    def schedule(self) -> FaultSchedule:
        """Return the faults."""
        return FaultSchedule(0, RATES)

    def test_create(self, store: str, schedule: FaultSchedule) -> None:
        """One writer wins, and knows it, however often each of them asks."""
        for turn in range(8):
            url = join_url(store, f"race-{turn}")
            with schedule.installed():
                won = race(lambda number, url=url: insist(partial(create, url, b"%d" % number * 99)), WRITERS)  # type: ignore[misc]
            assert won.count(True) == 1
            assert read_bytes(url) == b"%d" % won.index(True) * 99

    def test_slot_log(self, store: str, schedule: FaultSchedule) -> None:
        """A record that was acknowledged is where the answer says; nobody shares a number."""
        log = SlotLog(join_url(store, "log"))
        acknowledged: list[tuple[int, str]] = []

        def append(number: int) -> None:
            for turn in range(4):
                mark = make_nonce()
                expect = turn if number == 0 else None
                try:
                    slot = insist(partial(log.append, {"mark": mark}, expect))
                except Conflict:  # also by a record of our own whose acknowledgement did not come
                    continue
                acknowledged.append((slot.sequence, mark))

        with schedule.installed():
            race(append, WRITERS)
        slots = {slot.sequence: slot.record["mark"] for slot in log.read()}
        assert sorted(slots) == list(range(len(slots)))
        assert len(dict(acknowledged)) == len(acknowledged) >= 4 * (WRITERS - 1)
        assert dict(acknowledged).items() <= slots.items()

    def test_publish_and_move(self, store: str, schedule: FaultSchedule) -> None:
        """Versions and moves that were acknowledged are there; garbage collection finds nothing to correct but leftovers."""
        moved: list[tuple[int, str]] = []

        def act(number: int) -> tuple[int | None, str]:
            registry = insist(partial(Registry, store))
            found = insist(partial(publish, registry, "mini", make_checkpoint(number)))
            for expect in range(2):
                try:
                    move = insist(partial(set_alias, registry, "mini", "prod", str(found.snapshot), expect=expect))
                except Conflict:
                    continue
                moved.append((move.sequence, found.snapshot))
            return found.version, found.snapshot

        with schedule.installed():
            published = race(act, WRITERS)
        registry = Registry(store)
        versions = {version.number: version.snapshot for version in registry.versions("mini")}
        assert len(set(published)) == WRITERS and dict(published).items() <= versions.items()
        history = {move.sequence: move.snapshot for move in registry.alias_history("mini", "prod")}
        assert len(dict(moved)) == len(moved) and dict(moved).items() <= history.items()
        collect(registry, NOTHING, wait=True, watcher=VirtualTime().watcher())
        check_registry(registry)
        assert registry.resolve("mini@prod").snapshot == history[max(history)]

    def test_snapshot_lock(self, store: str, schedule: FaultSchedule) -> None:
        """Whoever holds a lock reads every byte, whatever collectors do meanwhile."""
        registry = Registry(store)
        for turn in range(3):
            snapshot = publish(registry, "mini", make_checkpoint(turn)).snapshot

            def act(number: int, snapshot: str = snapshot) -> bool:
                if number == 0:
                    insist(lambda: collect(Registry(store), NOTHING))
                    return False
                try:
                    lock = insist(partial(locks.take, registry, snapshot, f"job-{number}"))
                except SnapshotGone:
                    return False
                with schedule.paused():
                    read_all(registry, lock.manifest)
                    lock.release()
                return True

            with schedule.installed():
                held = race(act, WRITERS)
            assert registry.life(snapshot) == "swept" or any(held)

    def test_lease(self, store: str, schedule: FaultSchedule) -> None:
        """Of drivers that come at once one gets the job, and its successor comes after it."""
        url = join_url(store, "job")

        def take(number: int) -> Lease | None:
            try:
                return insist(partial(acquire, url, beat=60))
            except (Conflict, JobBusy):  # also by an epoch of our own whose acknowledgement did not come
                return None

        with schedule.installed():
            first = [lease for lease in race(take, WRITERS) if lease is not None]
        epochs = [slot.sequence + 1 for slot in SlotLog(join_url(url, "epochs")).read()]
        assert epochs == [1] and [lease.epoch for lease in first] in ([], [1])
        for lease in first:
            lease.check()
            lease.release()
            successor = acquire(url, beat=60)
            assert successor.epoch == 2
            with pytest.raises(JobBusy):
                lease.check()
            successor.release()

    @pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
    def test_commit_and_seal(self, store: str, schedule: FaultSchedule, format: str) -> None:
        """Every attempt at a partition ends with the same record, and all sealers with the same manifest."""
        url = join_url(store, "out")

        def open_output() -> Sink:
            return open_sink(url, format, JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)

        def act(number: int) -> tuple[list[str], bytes]:
            sink = insist(open_output)
            records = []
            for partition in range(3):
                part = make_part(partition, (1,) if partition == 1 else ())
                written = insist(partial(sink.write, part))
                record = insist(partial(sink.commit, make_record(part, written, epoch=number + 1)))
                records.append(record.model_dump_json())
            return records, insist(partial(sink.seal, {"key": "k"}))

        with schedule.installed():
            insist(open_output().create)  # by the driver, before there are workers
            answers = race(act, 2)
        assert [record.model_dump_json() for record in open_output().committed()] == answers[0][0]
        assert all(answer == answers[0] for answer in answers)
        manifest = read_manifest(url)
        assert manifest is not None and (manifest["rows_out"], manifest["rows_quarantined"]) == (ROWS - 1, 1)
        place = f"memory://{make_nonce()}"
        undisturbed = open_sink(place, format, JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
        undisturbed.create()
        for partition in range(3):
            wanted = undisturbed.write(make_part(partition, (1,) if partition == 1 else ()))
            assert wanted.digest == manifest["parts"][partition]["digest"]
            for name in undisturbed.objects(partition):
                assert read_bytes(join_url(url, name)) == read_bytes(join_url(place, name))
