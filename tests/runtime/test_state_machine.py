from __future__ import annotations

from collections import Counter

import pytest

from daskinfer.errors import (
    CorruptActivation,
    CorruptBlob,
    DaskinferError,
    JobFailed,
    RejectBudgetExceeded,
    SnapshotSkew,
    StorageRefused,
)
from daskinfer.runtime.protocol.actions import (
    Commit,
    Fail,
    GrantTag,
    IncidentRecord,
    LoadShard,
    Prepare,
    Recovered,
    Release,
    Seal,
    Submit,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    MicrobatchDone,
    Prepared,
    ShardFailed,
    ShardLoaded,
    Stranded,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import acknowledge, make_machine, make_record, only_fail, start


def test_no_partition_starts_before_every_stage_has_acknowledged() -> None:
    actions = start(make_machine())
    assert actions[:2] == [GrantTag(0, "a"), GrantTag(1, "b")]
    assert actions[2:] == [Prepare(0, 0), Prepare(1, 0)]


def test_a_partition_runs_through() -> None:
    core = make_machine(partitions=1)
    start(core)
    assert core.handle(Prepared(0, 6), 0) == [Submit(0, (0, 1, 2, 3), 0)]  # the window is 4
    assert core.handle(MicrobatchDone(0, 0), 0) == [Submit(0, (4,), 0)]
    assert core.handle(MicrobatchDone(0, 2), 0) == [Submit(0, (5,), 0)]
    for number in (1, 3, 4):
        assert core.handle(MicrobatchDone(0, number), 0) == []
    assert core.handle(MicrobatchDone(0, 5), 0) == [Commit(0, 0)]
    assert core.handle(Committed(make_record(0)), 0) == [Release(0), Seal()]
    assert core.handle(Tick(), 99) == []


def test_a_partition_without_accepted_rows_is_committed_all_the_same() -> None:
    core = make_machine(partitions=1, limits=Limits(rejects=10))
    start(core)
    assert core.handle(Prepared(0, 0), 0) == [Commit(0, 0)]


def test_committed_partitions_are_not_prepared_again() -> None:
    actions = start(make_machine(partitions=3, committed=frozenset({0, 1})))
    assert [action for action in actions if isinstance(action, Prepare)] == [Prepare(2, 0)]
    assert make_machine(partitions=2, committed=frozenset({0, 1})).start([]) == [Seal()]


def test_a_lost_worker_is_replaced_by_the_one_that_joins() -> None:
    core = make_machine()
    start(core)
    lost = core.handle(WorkerLost("b"), 0)
    assert isinstance(lost[0], IncidentRecord)
    assert lost[0].kind == "worker-lost"
    assert core.handle(WorkerJoined(make_worker("c")), 1) == [LoadShard(1, "c")]
    assert core.handle(acknowledge(1, "c"), 2) == [GrantTag(1, "c"), Recovered(0, 2)]
    assert core.counters["workers_lost"] == 1


def test_a_spare_takes_over_at_once() -> None:
    core = make_machine()
    core.start([make_worker("a"), make_worker("b"), make_worker("spare")])
    core.handle(acknowledge(0, "a"), 0)
    core.handle(acknowledge(1, "b"), 0)
    assert core.handle(WorkerLost("a"), 0)[1:] == [LoadShard(0, "spare")]


def test_workers_without_the_tag_hold_nothing() -> None:
    core = make_machine()
    assert core.start([make_worker("a"), make_worker("x", CPU=1), make_worker("b")]) == [
        LoadShard(0, "a"),
        LoadShard(1, "b"),
    ]


def test_a_stage_without_workers_gives_up_after_its_patience() -> None:
    core = make_machine(limits=Limits(rejects=0, missing="stop", patience=60))
    core.start([])
    assert core.handle(Tick(), 100) == []
    (*_, said) = core.handle(Tick(), 159)
    assert isinstance(said, IncidentRecord) and said.kind == "waiting" and "stage 1 (layers 1)" in said.detail
    error = only_fail(core.handle(Tick(), 160))
    assert "stage 0 (layers 0): no worker is left for it that declares GPU: 1" in str(error)


def test_workers_that_keep_dying_end_the_job() -> None:
    core = make_machine(limits=Limits(rejects=0, losses=2))
    start(core)
    for death in range(3):
        actions = core.handle(WorkerLost("b" if death == 0 else f"b{death}"), 0)
        if death < 2:
            core.handle(WorkerJoined(make_worker(f"b{death + 1}")), 0)
            core.handle(acknowledge(1, f"b{death + 1}"), 0)
    assert "3 workers died" in str(only_fail(actions))


@pytest.mark.parametrize(
    ("ack", "kind", "message"),
    [
        (acknowledge(1, "b", snapshot="sha256:other"), SnapshotSkew, "loaded sha256:other"),
        (acknowledge(1, "b", source="sha256:other"), JobFailed, "other daskinfer code"),
        (ShardFailed(1, "b", CorruptBlob("layer.3 differs")), CorruptBlob, "layer.3 differs"),
        (ShardFailed(1, "b", MemoryError("no")), JobFailed, "stage 1 could not be loaded on b: MemoryError"),
    ],
)
def test_a_wrong_acknowledgement_ends_the_job(
    ack: ShardLoaded | ShardFailed, kind: type[DaskinferError], message: str
) -> None:
    core = make_machine()
    core.start([make_worker("a"), make_worker("b")])
    error = only_fail(core.handle(ack, 0))
    assert isinstance(error, kind)
    assert message in str(error)


def test_rows_computed_by_a_stranger_end_the_job() -> None:
    core = make_machine()
    start(core)
    core.handle(Prepared(0, 1), 0)
    error = only_fail(core.handle(Committed(make_record(0, workers=("a", "stranger"))), 0))
    assert isinstance(error, SnapshotSkew)


def test_a_record_of_a_dead_driver_counts() -> None:
    core = make_machine(partitions=1)
    start(core)
    core.handle(Prepared(0, 1), 0)
    assert core.handle(Committed(make_record(0, workers=("old", "older"), epoch=0)), 0) == [Release(0), Seal()]


def test_a_damaged_activation_is_recomputed_and_counted() -> None:
    core = make_machine()
    start(core)
    core.handle(Prepared(0, 1), 0)
    actions = core.handle(TaskFailed("microbatch", 0, 0, CorruptActivation("edge 0-1 differs")), 0)
    assert actions[1] == Submit(0, (0,), 1)
    assert core.counters == Counter(corrupt_activations=1, microbatches_recomputed=1, workers_lost=0, task_failures=0)


@pytest.mark.parametrize(
    ("failed", "message"),
    [
        (TaskFailed("prepare", 0, 0, ValueError("boom")), "partition 0: prepare failed 3 times"),
        (TaskFailed("commit", 0, 0, ValueError("boom")), "partition 0: commit failed 3 times"),
        (TaskFailed("microbatch", 0, 0, OSError("boom")), "partition 0, microbatch 0: microbatch failed 3 times"),
    ],
)
def test_a_task_that_keeps_failing_ends_the_job_and_says_where(failed: TaskFailed, message: str) -> None:
    core = make_machine()
    start(core)
    core.handle(Prepared(0, 1), 0)
    for _ in range(2):
        assert not any(isinstance(a, Fail) for a in core.handle(failed, 0))
    assert f"{message}, at last with {type(failed.error).__name__}: boom" in str(only_fail(core.handle(failed, 0)))


def test_results_that_are_lost_after_all_are_computed_again_before_the_commit() -> None:
    core = make_machine(partitions=1)
    start(core)
    core.handle(Prepared(0, 2), 0)
    core.handle(MicrobatchDone(0, 0), 0)
    assert core.handle(MicrobatchDone(0, 1), 0) == [Commit(0, 0)]
    busy = StorageRefused("the store is busy")
    actions = core.handle(TaskFailed("commit", 0, 0, busy, lost=((0, busy), (1, CorruptActivation("x")))), 0)
    assert [action for action in actions if isinstance(action, Submit | Commit)] == [Submit(0, (1,), 1)]
    assert core.handle(MicrobatchDone(0, 1), 0) == [Recovered(1, 0)]
    assert core.handle(Tick(), 9) == [Submit(0, (0,), 1)]
    assert core.handle(MicrobatchDone(0, 0), 9)[-1] == Commit(0, 1)


def test_what_never_ends_is_started_again_once_the_rows_are_there_again() -> None:
    core = make_machine(partitions=1)
    start(core)
    core.handle(Prepared(0, 3), 0)
    core.handle(MicrobatchDone(0, 0), 0)
    core.handle(MicrobatchDone(0, 1), 0)
    assert core.handle(TaskFailed("prepare", 0, 0, OSError("lost")), 0)[-1] == Prepare(0, 1)
    assert core.handle(Stranded(0, (1, 2), committing=False), 0) == [Submit(0, (1,), 1), Submit(0, (2,), 1)]
    core.handle(MicrobatchDone(0, 2), 0)
    assert Commit(0, 0) in core.handle(MicrobatchDone(0, 1), 0)
    assert core.handle(Stranded(0, (), committing=True), 0) == [Commit(0, 1)]
    assert core.handle(Stranded(0, (0,), committing=True), 0) == [Submit(0, (0,), 1)]
    assert core.handle(MicrobatchDone(0, 0), 0) == [Commit(0, 2)]


def test_a_refused_commit_is_not_tried_again_while_results_that_it_needs_are_missing() -> None:
    core = make_machine(partitions=1)
    start(core)
    core.handle(Prepared(0, 1), 0)
    assert core.handle(MicrobatchDone(0, 0), 0) == [Commit(0, 0)]
    core.handle(TaskFailed("commit", 0, 0, StorageRefused("the store is busy")), 0)
    assert core.handle(Stranded(0, (0,), committing=True), 0) == [Submit(0, (0,), 1)]
    assert core.handle(Tick(), 9) == []
    assert Commit(0, 2) in core.handle(MicrobatchDone(0, 0), 9)


def test_the_error_budget() -> None:
    core = make_machine(limits=Limits(rejects=3))
    start(core)
    assert not any(isinstance(a, Fail) for a in core.handle(Committed(make_record(0, quarantined=3)), 0))
    error = only_fail(core.handle(Committed(make_record(1, quarantined=1)), 0))
    assert isinstance(error, RejectBudgetExceeded)
    assert error.exit_code == 4
