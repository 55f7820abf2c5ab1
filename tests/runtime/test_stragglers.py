from __future__ import annotations

from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import Abandon, Action, Commit, Restart, SpeculativeAttempt, Submit
from daskinfer.runtime.protocol.events import MicrobatchDone, Prepared, Running, TaskFailed
from daskinfer.runtime.state_machine.faults.microbatch_durations import KNOWN, UNKNOWN_SECONDS, TaskDurations
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import acknowledge, make_machine


def at(number: int, worker: str, seconds: float | None, stage: int = 0, attempt: int = 0) -> StageTask:
    return StageTask(0, 0, number, attempt, stage, worker, seconds)


def test_the_time_limit_follows_what_is_usual() -> None:
    tempo = TaskDurations("auto")
    assert tempo.limit(0) == UNKNOWN_SECONDS
    for number, seconds in enumerate((8.0, 10.0, 300.0)):
        tempo.look([at(number, "a", seconds / 2)])
        tempo.look([at(number, "a", seconds)])
    tempo.look([])
    assert tempo.limit(0) == 20 * 10.0
    assert tempo.limit(1) == UNKNOWN_SECONDS
    assert not tempo.is_slow(at(9, "a", 40.0))
    assert tempo.is_slow(at(9, "a", 41.0))


def test_microbatches_that_are_never_seen_are_short() -> None:
    tempo = TaskDurations("auto")
    for _ in range(KNOWN):
        tempo.note_done()
    assert tempo.limit(0) == 60
    assert tempo.is_slow(at(0, "a", 11.0))
    tempo.look([at(0, "a", 500.0)])  # one worker is slow, and that is not what is usual
    tempo.look([])
    assert tempo.limit(0) == 60


def test_a_limit_of_the_users_own_and_none_at_all() -> None:
    assert TaskDurations(7.5).limit(0) == 7.5
    assert TaskDurations(None).limit(0) is None


def make_pair() -> StateMachine:
    """Return a core with one stage on two workers, two microbatches in flight of ten, and a tempo."""
    core = make_machine(partitions=1, replicas=(2,), window=2, limits=Limits(rejects=0))
    core.start([make_worker("a"), make_worker("b")])
    core.handle(acknowledge(0, "a"), 0)
    core.handle(acknowledge(0, "b"), 0)
    core.handle(Prepared(0, KNOWN + 2), 0)
    for number in range(KNOWN):
        core.handle(MicrobatchDone(0, number), 0)
    return core


def seconds_of(actions: list[Action]) -> list[SpeculativeAttempt]:
    return [action for action in actions if isinstance(action, SpeculativeAttempt)]


def test_what_a_slow_worker_sits_on_is_started_once_more_elsewhere() -> None:
    core = make_pair()
    slow = (at(8, "a", 11.0), at(9, "a", None))
    assert seconds_of(core.handle(Running((at(8, "a", 9.0), at(9, "a", None))), 0)) == []
    assert seconds_of(core.handle(Running(slow), 0)) == [
        SpeculativeAttempt(0, 8, 1, "a"),
        SpeculativeAttempt(0, 9, 1, "a"),
    ]
    assert seconds_of(core.handle(Running(slow), 1)) == []
    core.handle(MicrobatchDone(0, 9), 2)
    assert core.handle(MicrobatchDone(0, 8), 3) == [Commit(0, 0)]
    assert core.counters["second_starts"] == 2
    # The one that came in second is stopped where it never ends, and nothing is suspected.
    actions = core.handle(Running((at(8, "a", 61.0),)), 60)
    assert actions[:2] == [Abandon(at(8, "a", 61.0)), Restart("a")]
    assert len(actions) == 3


def test_nothing_is_started_twice_where_every_worker_is_slow() -> None:
    core = make_pair()
    assert seconds_of(core.handle(Running((at(8, "a", 11.0), at(9, "b", 12.0))), 0)) == []


def test_a_microbatch_that_hangs_twice_costs_both_workers() -> None:
    core = make_pair()
    core.handle(Running((at(8, "a", 11.0),)), 0)
    actions = core.handle(Running((at(8, "a", 61.0), at(8, "b", 50.0, attempt=1))), 0)
    assert [action.worker for action in actions if isinstance(action, Restart)] == ["a", "b"]


def test_an_attempt_after_a_second_start_has_a_number_of_its_own() -> None:
    core = make_pair()
    core.handle(Running((at(8, "a", 11.0),)), 0)
    assert Submit(0, (8,), 2) in core.handle(TaskFailed("microbatch", 0, 8, OSError("no route")), 0)
