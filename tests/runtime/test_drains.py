"""Workers that join, and workers that are to leave."""

from __future__ import annotations

from daskinfer.runtime.protocol.actions import Answer, GrantTag, LoadShard, ReleaseShard
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from tests.support.assignments import LATER, begin, does, kinds, make_assignment, make_worker, obey, orders
from tests.support.factories import make_record

# Replicas


def work(assigned: WorkerAssignment, now: float, *seconds: float) -> None:
    """Ten partitions, each of which took the stages so many seconds."""
    assigned.meter.restart(now)
    record = make_record(0)
    trail = tuple(
        each.model_copy(update={"compute": spent, "receive": 0.0, "send": 0.0})
        for each, spent in zip(record.trail, seconds, strict=True)
    )
    for _ in range(10):
        assigned.meter.note(record.model_copy(update={"trail": trail}))


def test_a_joiner_that_nothing_needs_becomes_a_replica_of_the_bottleneck() -> None:
    assigned = make_assignment()
    begin(assigned, *"ab")
    assert assigned.enlist([make_worker("c")], 5) == []
    work(assigned, 100, 0.2, 0.9)
    assert assigned.look(4, 110) == []  # four seconds of work are left
    actions = assigned.look(400, 110)
    assert kinds(actions) == ["replica-added"]
    assert orders(actions) == [LoadShard(1, "c")]
    assert assigned.acknowledge(0, 1, "c", 111) == [GrantTag(1, "c")]
    assert assigned.look(400, 120) == []  # it is watched anew


def test_a_lost_replica_is_not_replaced_unless_that_pays_too() -> None:
    assigned = make_assignment()
    begin(assigned, *"abc")
    work(assigned, 0, 0.2, 0.9)
    obey(assigned, assigned.look(400, 10), 10)
    assigned.lose("c", 20)
    assert assigned.fill(20) == []
    assert assigned.enlist([make_worker("d")], 21) == []


# Drain


def test_a_drained_worker_waits_for_its_stage_to_be_taken_over() -> None:
    assigned = make_assignment()
    begin(assigned, *"abc")  # c is spare
    assert orders(assigned.drain(7, "b", 10)) == [LoadShard(1, "c")]
    assert does(assigned)["b"][0] == "leaves"
    actions = assigned.acknowledge(0, 1, "c", 11)
    assert orders(actions) == [GrantTag(1, "c"), ReleaseShard("b", None)]
    actions = assigned.stood_down("b", None, 12)
    assert kinds(actions) == ["drained"]
    (answer,) = orders(actions)
    assert isinstance(answer, Answer) and answer.number == 7
    assert "b" not in does(assigned)


def test_a_standby_relieves_a_drained_worker_at_once() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abc")
    assert orders(assigned.drain(0, "b", 10)) == [GrantTag(1, "c"), ReleaseShard("b", None)]


def test_without_a_spare_another_stage_s_worker_relieves_a_drained_one() -> None:
    assigned = make_assignment()
    begin(assigned, *"ab")
    actions = assigned.drain(0, "b", 10)
    assert orders(actions) == [LoadShard(1, "a")]
    assert orders(assigned.acknowledge(0, 1, "a", 11)) == [GrantTag(1, "a"), ReleaseShard("b", None)]


def test_a_replica_leaves_at_once() -> None:
    assigned = make_assignment(replicas=(1, 2))
    begin(assigned, *"abc")
    assert orders(assigned.drain(0, "b", 10)) == [ReleaseShard("b", None)]


def test_who_cannot_be_relieved_goes_on_until_somebody_joins() -> None:
    assigned = make_assignment(60, 50)
    begin(assigned, *"ab")
    assert kinds(assigned.drain(0, "b", 10)) == ["drain-waits"]
    assert assigned.missing(10 + LATER) == {}
    assert obey(assigned, assigned.enlist([make_worker("c")], 20), 20)[:3] == [
        LoadShard(1, "c"),
        GrantTag(1, "c"),
        ReleaseShard("b", None),
    ]


def test_a_doubler_is_drained_of_both_stages() -> None:
    assigned = make_assignment(20, 20, 20)
    begin(assigned, *"abc")
    assigned.lose("c", 0)
    obey(assigned, assigned.look(9, LATER), LATER)
    asked = obey(assigned, assigned.drain(0, "a", 20), 20)
    assert [action for action in asked if isinstance(action, GrantTag)] == [GrantTag(0, "b"), GrantTag(2, "b")]
    assert ReleaseShard("a", None) in asked
    assert does(assigned) == {"b": ("computes", (0, 1, 2), ())}


def test_drained_workers_are_never_used_again() -> None:
    assigned = make_assignment(replicas=(1, 2), drained="x")
    begin(assigned, *"abcx")
    assert "x" not in does(assigned)
    obey(assigned, assigned.drain(0, "b", 10), 10)
    assert assigned.enlist([make_worker("b")], 20) == []
    assert assigned.enlist([make_worker("d")], 20) == [LoadShard(1, "d")]


def test_a_restarted_worker_of_the_same_name_is_not_used_either() -> None:
    assigned = make_assignment()
    obey(
        assigned,
        assigned.enlist([make_worker("a", name="one"), make_worker("b", name="two"), make_worker("c", name="x")]),
        0,
    )
    obey(assigned, assigned.drain(0, "b", 10), 10)
    assert assigned.enlist([make_worker("b2", name="two")], 20) == []


def test_spares_and_standbys_leave_at_once() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abcd")
    assert orders(assigned.drain(0, "c", 10)) == [LoadShard(0, "d"), LoadShard(1, "d"), ReleaseShard("c", None)]
    assigned = make_assignment()
    begin(assigned, *"abc")
    assert orders(assigned.drain(0, "c", 10)) == [ReleaseShard("c", None)]


def test_asking_twice_is_answered_twice() -> None:
    assigned = make_assignment(replicas=(1, 2))
    begin(assigned, *"abc")
    assigned.drain(3, "b", 10)
    assert assigned.drain(4, "b", 11) == []
    answers = [action.number for action in assigned.stood_down("b", None, 12) if isinstance(action, Answer)]
    assert answers == [3, 4]
    (answer,) = assigned.drain(5, "b", 13)
    assert isinstance(answer, Answer) and "does not work for the job any more" in answer.detail


def test_a_worker_that_dies_while_it_leaves_is_answered_for() -> None:
    assigned = make_assignment(replicas=(1, 2))
    begin(assigned, *"abc")
    assigned.drain(0, "b", 10)
    assigned.lose("b", 11)
    actions = assigned.fill(11)
    assert kinds(actions) == ["worker-lost"]
    (answer,) = orders(actions)
    assert isinstance(answer, Answer) and "lost" in answer.detail
