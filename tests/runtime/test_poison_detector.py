from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.errors import CorruptActivation, RejectBudgetExceeded
from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import (
    Action,
    Commit,
    Fail,
    Inspect,
    Probe,
    RecordPoison,
    Restart,
    Submit,
    Withdraw,
)
from daskinfer.runtime.protocol.events import (
    Inspected,
    MicrobatchDone,
    PoisonRecorded,
    Prepared,
    ProbeDone,
    ProbeFailed,
    Running,
    TaskFailed,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.state_machine.faults.poison_bisection import ALONE, FANOUT, Bisection
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.job.poison import PoisonRow
from daskinfer.spec.rows import Fault
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import acknowledge, make_machine, only_fail, start
from tests.support.strategies import KINDS

# One microbatch


def search(
    rows: int, poison: set[int], kind: Fault, is_seen: bool, chance: set[int] | None = None
) -> tuple[Bisection, int]:
    """Search as a driver would; by `chance`, probes with these numbers fail too, but a row all alone only once."""
    found, probes, unlucky = Bisection(range(rows), kind if is_seen else None), 0, Counter[int]()
    while not found.is_decided and not found.is_stuck:
        part = found.part
        assert part and sorted((*part, *found.without)) == list(range(rows))
        fails = bool(poison & set(part))
        if not fails and probes in (chance or set()) and (len(part) > 1 or not unlucky[part[0]]):
            fails = True
            unlucky[part[0]] += len(part) == 1
        probes += 1
        if fails:
            found.failed(kind, "boom")
        else:
            found.passed()
    return found, probes


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 300), st.data(), KINDS, st.booleans())
def test_exactly_the_poison_is_identified_in_few_probes(
    rows: int, data: st.DataObject, kind: Fault, is_seen: bool
) -> None:
    poison = data.draw(st.sets(st.integers(0, rows - 1), min_size=1, max_size=6))
    found, probes = search(rows, poison, kind, is_seen)
    assert found.identified.keys() == poison
    levels = math.ceil(math.log(rows, FANOUT[kind])) + 1
    assert probes <= 2 + len(poison) * (FANOUT[kind] * levels + ALONE)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200), st.data(), KINDS)
def test_chance_identifies_nobody(rows: int, data: st.DataObject, kind: Fault) -> None:
    poison = data.draw(st.sets(st.integers(0, rows - 1), max_size=4))
    chance = data.draw(st.sets(st.integers(0, 60), max_size=2))
    found, _ = search(rows, poison, kind, False, chance)
    assert found.is_decided
    assert found.identified.keys() == poison


@pytest.mark.parametrize("kind", ["raised", "killed"])
def test_the_last_part_is_not_tried_where_the_others_pass(kind: Fault) -> None:
    found = Bisection(b"abcdefgh", kind)
    tried = []
    while not found.is_decided:
        tried.append(bytes(found.part).decode())
        if ord("h") in found.part:
            found.failed(kind, "boom")
        else:
            found.passed()
    parts = {"raised": ["abcd", "ef", "g"], "killed": [*"abcdefg"]}[kind]
    assert tried == [*parts, "h", "h", "abcdefg"]


def test_a_whole_that_fails_though_its_parts_pass_is_not_of_rows() -> None:
    found, probes = Bisection(range(64), "killed"), 0
    while not found.is_stuck:
        probes += 1
        if len(found.part) > 32:
            found.failed("killed", "out of memory")
        else:
            found.passed()
    assert not found.identified
    assert probes < 150


# Through the driver's logic


def make_failing(**limits: object) -> StateMachine:
    """Return a core with one partition of two microbatches in flight."""
    core = make_machine(partitions=1, limits=Limits(rejects=10, **limits))  # type: ignore[arg-type]
    start(core)
    core.handle(Prepared(0, 2), 0)
    return core


def only(actions: list[Action], kind: type) -> object:
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


def test_a_microbatch_that_raises_twice_is_searched_beside_the_others() -> None:
    core = make_failing()
    boom = TaskFailed("microbatch", 0, 0, ValueError("boom at 0x7f00"))
    assert core.handle(boom, 0)[1:] == [Submit(0, (0,), 1)]
    actions = core.handle(boom, 0)
    assert (only(actions, Withdraw), only(actions, Inspect)) == (Withdraw(0, 0), Inspect(0, 0))
    # Microbatch 1 is in flight meanwhile.
    assert core.handle(Inspected(0, 0, (7, 3)), 0) == [Probe(0, 0, without=(3,), attempt=2)]
    for attempt in (3, 4):
        actions = core.handle(ProbeFailed(0, 0, ValueError("boom at 0x7f01")), attempt)
    # Row 7 is identified, row 3 passes: what is left of the microbatch is computed by that.
    assert only(actions, Probe) == Probe(0, 0, without=(7,), attempt=4)
    found = only(core.handle(ProbeDone(0, 0), 5), RecordPoison)
    assert isinstance(found, RecordPoison)
    assert found.poison_record.rows == (
        PoisonRow(row=7, kind="raised", error="the model raised ValueError: boom at ..."),
    )
    assert [(attempt.rows, attempt.before) for attempt in found.poison_record.attempts] == [
        (0, 5),
        (0, 5),
        (1, 2),
        (1, 1),
    ]
    assert core.handle(MicrobatchDone(0, 1), 5) == []  # not before the poison_record is written down
    assert core.handle(PoisonRecorded(found.poison_record), 6)[0] == Commit(0, 0)


def test_errors_that_are_not_of_the_rows_are_tried_again() -> None:
    core = make_failing()
    for _ in range(2):
        core.handle(TaskFailed("microbatch", 0, 0, ValueError("boom")), 0)
    core.handle(Inspected(0, 0, (0, 1)), 0)
    again = core.handle(ProbeFailed(0, 0, CorruptActivation("edge")), 0)
    assert again == [Probe(0, 0, without=(1,), attempt=3)]
    core.handle(ProbeFailed(0, 0, OSError("no route")), 0)
    error = only_fail(core.handle(ProbeFailed(0, 0, OSError("no route")), 0))
    assert "it failed 3 times, at last with OSError: no route" in str(error)


def test_a_suspect_of_killing_is_probed_alone_and_whole() -> None:
    core = make_failing()
    tasks = tuple(StageTask(0, 0, number, 0, stage=1, worker="b") for number in (0, 1))
    for worker in ("c", "d"):
        core.handle(WorkerJoined(make_worker(worker)), 0)
    core.handle(WorkerLost("b", tasks=tasks), 0)
    core.handle(acknowledge(1, "c"), 0)
    actions = core.handle(WorkerLost("c", tasks=tasks[:1]), 0)  # Dask had tried it again
    assert only(actions, Withdraw) == Withdraw(0, 0)
    assert core.handle(Inspected(0, 0, (0, 1, 2)), 0) == []  # microbatch 1 may yet do it
    actions = core.handle(MicrobatchDone(0, 1), 0)
    assert actions == [Probe(0, 0, without=(), attempt=1)]
    # It went through: chance had killed both workers.
    assert core.handle(ProbeDone(0, 0), 0)[1:] == [Commit(0, 0)]


def test_deaths_that_are_being_looked_into_do_not_end_the_job() -> None:
    core = make_failing(losses=2)
    for death in range(4):
        worker = "b" if death == 0 else f"b{death}"
        actions = core.handle(WorkerLost(worker, tasks=(StageTask(0, 0, death % 2, 0, 1, worker),)), 0)
        assert not any(isinstance(action, Fail) for action in actions)
        core.handle(WorkerJoined(make_worker(f"b{death + 1}")), 0)
        core.handle(acknowledge(1, f"b{death + 1}"), 0)


@pytest.mark.parametrize("limit", [5.0, "auto", None])
def test_a_task_that_runs_too_long_costs_its_worker_and_is_searched(limit: float | None) -> None:
    core = make_failing(seconds=limit)
    task = StageTask(0, 0, 0, 0, stage=1, worker="b", seconds=6.0)
    actions = core.handle(Running((task, StageTask(0, 0, 1, 0, stage=1, worker="b"))), 0)
    if limit != 5.0:
        assert actions == []
        return
    assert (only(actions, Withdraw), only(actions, Restart)) == (Withdraw(0, 0), Restart("b"))
    # The death that follows blames nobody, and the other microbatch goes on.
    actions = core.handle(WorkerLost("b", tasks=(StageTask(0, 0, 1, 0, stage=1, worker="b"),)), 1)
    assert not any(isinstance(action, Withdraw) for action in actions)
    assert core.handle(Inspected(0, 0, (0, 1)), 1) == [Probe(0, 0, without=(1,), attempt=1)]


def test_identified_rows_count_against_the_budget_before_the_partition_is_committed() -> None:
    core = make_machine(partitions=1, limits=Limits(rejects=1))
    start(core)
    core.handle(Prepared(0, 2), 0)
    core.handle(MicrobatchDone(0, 1), 0)
    for _ in range(2):
        core.handle(TaskFailed("microbatch", 0, 0, ValueError("boom")), 0)
    core.handle(Inspected(0, 0, (0, 1)), 0)
    for _ in range(3):
        core.handle(ProbeFailed(0, 0, ValueError("boom")), 0)
    error = only_fail(core.handle(ProbeFailed(0, 0, ValueError("boom")), 0))
    assert isinstance(error, RejectBudgetExceeded)
    assert str(error).startswith("2 rows are quarantined; errors.max_rows allows 1")


def test_a_model_that_fails_for_every_row_ends_the_job_soon() -> None:
    core = make_machine(partitions=1, limits=Limits(rejects=10**6))
    start(core)
    core.handle(Prepared(0, 1), 0)
    for _ in range(2):
        core.handle(TaskFailed("microbatch", 0, 0, ValueError("no such layer")), 0)
    actions, probes = core.handle(Inspected(0, 0, tuple(range(1000))), 0), 0
    while not any(isinstance(action, Fail) for action in actions):
        probes += len([action for action in actions if isinstance(action, Probe)])
        actions = core.handle(ProbeFailed(0, 0, ValueError("no such layer")), 0)
    assert probes < 40
    assert "each of the first 8 rows that were tried raised, at last with: ValueError: no such layer" in str(
        only_fail(actions)
    )


def test_what_another_driver_has_found_counts() -> None:
    core = make_failing()
    for _ in range(2):
        core.handle(TaskFailed("microbatch", 0, 0, ValueError("boom")), 0)
    core.handle(Inspected(0, 0, (0, 1)), 0)
    core.handle(ProbeFailed(0, 0, ValueError("boom")), 0)
    core.handle(ProbeFailed(0, 0, ValueError("boom")), 0)
    found = only(core.handle(ProbeDone(0, 0), 0), RecordPoison)
    assert isinstance(found, RecordPoison)
    theirs = found.poison_record.model_copy(update={"rows": (PoisonRow(row=1, kind="raised", error="boom"),)})
    assert only(core.handle(PoisonRecorded(theirs), 0), Submit) == Submit(0, (0,), 5)
    for _ in range(2):
        actions = core.handle(TaskFailed("microbatch", 0, 0, ValueError("boom")), 0)
    assert "although 1 of its rows are left out" in str(only_fail(actions))
