"""Incidents from their beginning to their end, and what is done in between, without a cluster."""

from __future__ import annotations

import pytest

from daskinfer.errors import CorruptActivation, DeviceFailed, NotAllowed, StorageRefused
from daskinfer.runtime.protocol.actions import (
    Action,
    Commit,
    Fail,
    GrantTag,
    IncidentRecord,
    LoadShard,
    Prepare,
    Recovered,
    Restart,
    Submit,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    MicrobatchDone,
    Prepared,
    ShardFailed,
    TaskFailed,
    Tick,
    WorkerFrozen,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.state_machine.faults.incidents import IncidentLog
from daskinfer.runtime.state_machine.faults.usual_durations import ENOUGH, UsualDurations
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import acknowledge, make_machine, make_record, only_fail, start

REFUSED = StorageRefused("s3://bucket is away")


def notes(actions: list[Action]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, IncidentRecord)]


def broken(worker: str) -> DeviceFailed:
    error = DeviceFailed("GPU failed: CUDA error: an illegal memory access was encountered")
    error.worker = worker
    return error


def make_running(microbatches: int = 1, limits: Limits | None = None) -> StateMachine:
    """Workers a and b hold the two stages, c is spare, and partition 0 is prepared."""
    core = make_machine(partitions=2, limits=limits)
    core.start([make_worker("a"), make_worker("b"), make_worker("c")])
    core.handle(acknowledge(0, "a"), 0)
    core.handle(acknowledge(1, "b"), 0)
    core.handle(Prepared(0, microbatches), 0)
    return core


# The book


def test_incidents_of_one_thing_end_one_after_the_other() -> None:
    book = IncidentLog()
    first = book.begin("stage", "worker-lost", "a is gone", 10, detect_seconds=0.5)
    second = book.begin("stage", "worker-lost", "b is gone", 12)
    assert first == IncidentRecord("worker-lost", "a is gone", 0, 0.5)
    assert second.number == 1
    assert book.end("stage", 15) == [Recovered(0, 5)]
    assert book.is_open("stage")
    assert book.end("stage", 15) == [Recovered(1, 3)]
    assert not book.is_open("stage")
    assert book.end("stage", 16) == []


def test_an_incident_can_wait_for_another_thing() -> None:
    book = IncidentLog()
    book.begin("worker", "worker-paused", "", 1)
    book.move("worker", "stage")
    book.move("nobody", "nothing")
    assert not book.is_open("worker") and not book.is_open("nothing")
    assert book.end("stage", 4) == [Recovered(0, 3)]


def test_what_is_slow_is_told_by_what_was_usual() -> None:
    pace = UsualDurations()
    for _ in range(ENOUGH - 1):
        assert pace.judge("read", 100.0) is None
    assert pace.judge("read", 1000.0) is None, "too few to tell"
    assert pace.judge("read", 1001.0) == 100.0
    assert pace.judge("commit", 1001.0) is None, "another kind"
    quick = UsualDurations()
    assert not any(quick.judge("read", seconds) for seconds in [0.01] * ENOUGH + [4.0])
    assert quick.judge("read", 6.0) == 0.01


# Workers


def test_a_lost_worker_says_how_long_it_was_silent() -> None:
    core = make_running()
    (note,) = (action for action in core.handle(WorkerLost("b", silent=0.4), 7) if isinstance(action, IncidentRecord))
    assert (note.kind, note.detect_seconds) == ("worker-lost", 0.4)


def test_a_frozen_worker_is_taken_off_and_replaced() -> None:
    core = make_running()
    restart, note, load = core.handle(WorkerFrozen("b", silent=15.2), 100)
    assert restart == Restart("b")
    assert note == IncidentRecord("worker-frozen", "b, which held stage 1, was not heard of for 15 s", 0, 15.2)
    assert load == LoadShard(1, "c")
    assert core.handle(WorkerLost("b"), 101) == [], "the scheduler says it, too"
    assert core.handle(acknowledge(1, "c"), 103) == [GrantTag(1, "c"), Recovered(0, 3)]


def test_a_worker_that_loads_may_be_silent_for_longer() -> None:
    core = make_machine()
    core.start([make_worker("a"), make_worker("b"), make_worker("c")])
    assert core.handle(WorkerFrozen("a", silent=15), 0) == []
    assert core.handle(WorkerFrozen("a", silent=45), 30) == []
    assert core.handle(WorkerFrozen("a", silent=60), 45)[0] == Restart("a")


def test_a_frozen_worker_of_somebody_else_is_left_alone() -> None:
    assert make_running().handle(WorkerFrozen("stranger", 15), 0) == []


def test_a_pause_ends_by_itself() -> None:
    core = make_running(limits=Limits(rejects=0, paused=60))
    (note,) = core.handle(WorkerPaused("b", used=900, limit=1000), 10)
    assert isinstance(note, IncidentRecord) and note.kind == "worker-paused"
    assert core.handle(WorkerResumed("b"), 30) == [Recovered(0, 20)]
    assert core.handle(Tick(), 100) == []


def test_a_long_pause_ends_with_another_worker() -> None:
    core = make_running(limits=Limits(rejects=0, paused=60))
    core.handle(WorkerPaused("b", used=900, limit=1000), 10)
    assert core.handle(Tick(), 69) == []
    restart, note, load = core.handle(Tick(), 70)
    assert (restart, load) == (Restart("b"), LoadShard(1, "c"))
    assert isinstance(note, IncidentRecord) and note.kind == "worker-lost" and "paused for 60 s" in note.detail
    over = core.handle(acknowledge(1, "c"), 75)
    assert over == [GrantTag(1, "c"), Recovered(0, 65)]
    assert core.handle(Tick(), 80) == []


# Devices


def test_a_failed_device_costs_its_worker_and_the_microbatch_goes_elsewhere() -> None:
    core = make_running(microbatches=2)
    restart, note, load, again = core.handle(TaskFailed("microbatch", 0, 0, broken("b")), 5)
    assert (restart, load, again) == (Restart("b"), LoadShard(1, "c"), Submit(0, (0,), 1))
    assert isinstance(note, IncidentRecord) and note.kind == "device-failed" and "illegal memory access" in note.detail
    # Its other microbatches fail with it.
    assert core.handle(TaskFailed("microbatch", 0, 1, broken("b")), 5) == [Submit(0, (1,), 1)]
    assert core.handle(acknowledge(1, "c"), 9) == [GrantTag(1, "c"), Recovered(0, 4)]


def test_a_microbatch_that_breaks_every_device_ends_the_job() -> None:
    core = make_running()
    for worker in ("b", "c"):
        core.handle(TaskFailed("microbatch", 0, 0, broken(worker)), 0)
        core.handle(WorkerJoined(make_worker(f"after {worker}")), 0)
    assert "failed 3 times" in str(only_fail(core.handle(TaskFailed("microbatch", 0, 0, broken("after c")), 0)))


def test_a_device_that_fails_while_loading_costs_its_worker() -> None:
    core = make_machine()
    core.start([make_worker("a"), make_worker("b"), make_worker("c")])
    actions = core.handle(ShardFailed(0, "a", DeviceFailed("GPU failed: CUDA error: unknown error")), 0)
    assert notes(actions) == ["device-failed"]
    assert actions[-1] == LoadShard(0, "c")


# Storage


def test_what_a_store_refuses_is_done_again_after_growing_pauses() -> None:
    core = make_running()
    assert notes(core.handle(TaskFailed("microbatch", 0, 0, REFUSED), 100)) == ["storage-refused"]
    assert core.handle(Tick(), 100.9) == []
    assert core.handle(Tick(), 101) == [Submit(0, (0,), 1)]
    assert core.handle(Tick(), 110) == [], "it is under way"
    assert core.handle(TaskFailed("microbatch", 0, 0, REFUSED), 110) == [], "the incident is open"
    assert core.handle(Tick(), 111.9) == []
    assert core.handle(Tick(), 112) == [Submit(0, (0,), 2)]
    assert core.handle(MicrobatchDone(0, 0), 130) == [Recovered(0, 30), Commit(0, 0)]


def test_refusals_do_not_count_as_attempts_and_end_the_job_after_their_time() -> None:
    core = make_running(limits=Limits(rejects=0, storage=300))
    now = 0.0
    attempt = 0
    while now < 280:
        core.handle(TaskFailed("microbatch", 0, 0, REFUSED), now)
        now += 31
        attempt += 1
        assert core.handle(Tick(), now) == [Submit(0, (0,), attempt)]
    error = only_fail(core.handle(TaskFailed("microbatch", 0, 0, REFUSED), 310))
    assert isinstance(error, StorageRefused)
    assert "s3://bucket is away (and so for 5 min 10 s)" in str(error)


def test_one_outage_is_one_incident() -> None:
    core = make_running(microbatches=2)
    told = core.handle(TaskFailed("microbatch", 0, 0, REFUSED), 0)
    told += core.handle(TaskFailed("microbatch", 0, 1, REFUSED), 1)
    told += core.handle(TaskFailed("prepare", 1, 0, REFUSED), 2)
    assert notes(told) == ["storage-refused"]
    assert set(core.handle(Tick(), 3)) == {Submit(0, (0,), 1), Submit(0, (1,), 1), Prepare(1, 1)}
    assert not any(isinstance(action, Recovered) for action in core.handle(MicrobatchDone(0, 0), 4))
    assert not any(isinstance(action, Recovered) for action in core.handle(MicrobatchDone(0, 1), 5))
    assert Recovered(0, 6) in core.handle(Prepared(1, 0), 6)


def test_a_partition_that_another_attempt_commits_is_not_computed_again() -> None:
    core = make_running()
    core.handle(MicrobatchDone(0, 0), 0)
    core.handle(TaskFailed("commit", 0, 0, REFUSED), 0)
    assert Recovered(0, 0.5) in core.handle(Committed(make_record(0)), 0.5)
    assert core.handle(Tick(), 10) == []


def test_a_shard_that_a_store_refuses_is_loaded_later() -> None:
    core = make_machine()
    core.start([make_worker("a"), make_worker("b")])
    assert notes(core.handle(ShardFailed(0, "a", REFUSED), 0)) == ["storage-refused"]
    assert core.handle(Tick(), 1) == [LoadShard(0, "a")]
    core.handle(acknowledge(1, "b"), 2)
    assert Recovered(0, 3) in core.handle(acknowledge(0, "a"), 3)
    lost = make_machine()
    lost.start([make_worker("a"), make_worker("b")])
    lost.handle(ShardFailed(0, "a", REFUSED), 0)
    lost.handle(WorkerLost("a"), 0)
    assert lost.handle(Tick(), 1) == []


def test_what_no_time_mends_ends_the_job_at_once() -> None:
    error = NotAllowed("not allowed to write out.zarr")
    assert only_fail(make_running().handle(TaskFailed("prepare", 1, 0, error), 0)) is error


def test_slow_storage_is_told_once_and_until_it_is_over() -> None:
    core = make_machine(partitions=40)
    start(core)

    def commit(partition: int, write: float) -> list[Action]:
        for step in (Prepared(partition, 0), Committed(make_record(partition).model_copy(update={"write": write}))):
            actions = core.handle(step, float(partition))
        return [action for action in actions if isinstance(action, IncidentRecord | Recovered)]

    assert [commit(partition, 0.1) for partition in range(20)] == [[]] * 20
    (note,) = commit(20, 30.0)
    assert isinstance(note, IncidentRecord) and note.kind == "storage-slow"
    assert note.detail == "the commit of partition 20 took 30.0 s, where 100 ms is usual"
    assert commit(21, 31.0) == []
    assert commit(22, 0.1) == [Recovered(0, 2)]


# Tasks


@pytest.mark.parametrize("error", [CorruptActivation("edge 0-1 differs"), ValueError("boom")])
def test_a_failed_task_recovers_when_it_is_done(error: Exception) -> None:
    core = make_running()
    core.handle(TaskFailed("microbatch", 0, 0, error), 5)
    assert core.handle(MicrobatchDone(0, 0), 8)[0] == Recovered(0, 3)
    assert not any(isinstance(action, Fail) for action in core.handle(Tick(), 9))
