"""Workers come, go, stand by, double up and leave: the assigned's decisions, without a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.runtime.protocol.actions import Fail, GrantTag, LoadShard, Prepare, ReleaseShard, StatusLine
from daskinfer.runtime.protocol.events import Tick, WorkerJoined
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.workers.placement_policy import RESTART_SECONDS
from daskinfer.runtime.state_machine.workers.unassigned_stages import SAY_SECONDS, UnassignedStagePolicy
from daskinfer.spec.plan import WorkerShape
from daskinfer.testing.fixtures.plans import make_plan
from daskinfer.testing.stress.campaigns import campaign_size
from tests.support.assignments import LATER, MEMORY, begin, does, kinds, make_assignment, make_worker, obey, orders
from tests.support.chooser import Chooser
from tests.support.factories import make_machine, make_stages
from tests.support.simulatedcluster import SimulatedCluster
from tests.support.simulatedtasks import Troubles

# Standby


def test_a_standby_loads_what_it_can_and_gets_no_token() -> None:
    assigned = make_assignment(standby=1)
    actions = assigned.enlist(map(make_worker, "abc"))
    assert actions == [LoadShard(0, "a"), LoadShard(1, "b"), LoadShard(0, "c"), LoadShard(1, "c")]
    granted = obey(assigned, actions, 0)[4:]
    assert granted == [GrantTag(0, "a"), GrantTag(1, "b")]
    assert does(assigned)["c"] == ("stands by", (), (0, 1))


def test_the_job_begins_before_its_standbys_have_loaded() -> None:
    assigned = make_assignment(standby=1)
    assigned.enlist(map(make_worker, "abc"))
    assigned.acknowledge(0, 0, "a", 1)
    assert assigned.acknowledge(0, 1, "b", 1) == [GrantTag(0, "a"), GrantTag(1, "b")]
    assert assigned.complete


def test_a_standby_takes_over_at_once_and_loads_nothing() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abc")
    assert assigned.lose("b", 10) == (1,)
    assert orders(assigned.fill(10)) == [GrantTag(1, "c")]
    assert does(assigned)["c"] == ("computes", (1,), (0,))


def test_a_standby_that_still_loads_takes_over_as_soon_as_it_has() -> None:
    assigned = make_assignment(standby=1)
    assigned.enlist(map(make_worker, "abc"))
    assigned.acknowledge(0, 0, "a", 0)
    assigned.acknowledge(0, 1, "b", 0)
    assigned.lose("b", 10)
    assert orders(assigned.fill(10)) == []
    assert assigned.missing(10 + LATER) == {}
    assert assigned.acknowledge(0, 1, "c", 12) == [GrantTag(1, "c")]


def test_the_next_spare_replaces_a_standby_that_was_used() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abc")
    assigned.lose("b", 10)
    assigned.fill(10)
    assert assigned.enlist([make_worker("d")], 20) == [LoadShard(0, "d"), LoadShard(1, "d")]


def test_a_lost_standby_is_replaced_too() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abcd")
    assert assigned.lose("c", 10) == ()
    assert assigned.fill(10) == [LoadShard(0, "d"), LoadShard(1, "d")]


def test_a_standby_with_other_shards_makes_room_for_what_is_lost() -> None:
    assigned = make_assignment(60, 50, standby=1)
    begin(assigned, *"abc")
    assert does(assigned)["c"] == ("stands by", (), (0,))
    assigned.lose("b", 10)
    actions = assigned.fill(10)
    assert actions == [ReleaseShard("c", 0)]
    assert assigned.stood_down("c", 0, 11) == [LoadShard(1, "c")]
    assert assigned.acknowledge(0, 1, "c", 12) == [GrantTag(1, "c")]


def test_a_standby_follows_to_the_next_generation() -> None:
    assigned = make_assignment(standby=1)
    begin(assigned, *"abc")
    assigned.generations.append(1)
    assert (1, "c") in assigned.posts
    for stage, worker in assigned.posts[:2]:
        assigned.acknowledge(1, stage, worker, 5)
    assert assigned.is_loaded(1)  # partitions need not wait for it
    assigned.lose("b", 10)
    assert orders(assigned.fill(10)) == [GrantTag(1, "c", 0)]
    assert assigned.acknowledge(1, 1, "c", 11) == [GrantTag(1, "c", 1)]


# No spare


def test_a_stage_is_doubled_after_what_a_restart_takes() -> None:
    assigned = make_assignment()
    begin(assigned, *"ab")
    assigned.lose("b", 100)
    assert assigned.fill(100) == []
    assert assigned.look(9, 100 + RESTART_SECONDS - 0.1) == []
    actions = assigned.look(9, 100 + RESTART_SECONDS)
    assert kinds(actions) == ["stage-doubled"]
    assert orders(actions) == [LoadShard(1, "a")]
    assert assigned.look(9, 100 + 2 * RESTART_SECONDS) == []
    assert assigned.acknowledge(0, 1, "a", 120) == [GrantTag(1, "a")]
    assert does(assigned) == {"a": ("computes", (0, 1), ())}


def test_who_has_no_room_does_not_double() -> None:
    assigned = make_assignment(30, 50)
    begin(assigned, *"ab")
    assigned.lose("b", 0)
    assert assigned.look(9, LATER) == []
    assert assigned.missing(LATER) == {1: LATER}
    said = assigned.wants.describe_missing(1)
    assert "stage 1 (layers 1)" in said and "GPU: 1" in said and "50 B" in said


def test_a_joiner_takes_the_doubled_stage_over() -> None:
    assigned = make_assignment()
    begin(assigned, *"ab")
    assigned.lose("b", 0)
    obey(assigned, assigned.look(9, LATER), LATER)
    assert assigned.enlist([make_worker("c")], 20) == [LoadShard(1, "c")]
    actions = assigned.acknowledge(0, 1, "c", 30)
    # First it is granted there, then taken from the doubler, whose shard is freed.
    assert orders(actions) == [GrantTag(1, "c"), ReleaseShard("a", 1)]
    assert kinds(actions) == ["stage-relieved"]
    assert does(assigned) == {"a": ("computes", (0,), ()), "c": ("computes", (1,), ())}


def test_a_lost_doubler_leaves_two_stages_to_the_others() -> None:
    assigned = make_assignment(20, 20, 20)
    begin(assigned, *"abc")
    assigned.lose("c", 0)
    obey(assigned, assigned.look(9, LATER), LATER)
    assert does(assigned)["a"] == ("computes", (0, 2), ())
    assert assigned.lose("a", 10) == (0, 2)
    assigned.fill(10)
    actions = obey(assigned, assigned.look(9, 10 + LATER), 10 + LATER)
    assert [action for action in actions if isinstance(action, GrantTag)] == [GrantTag(0, "b"), GrantTag(2, "b")]


def test_a_worker_lost_before_the_job_begins_is_doubled_too() -> None:
    assigned = make_assignment()
    assigned.enlist(map(make_worker, "ab"))
    assigned.acknowledge(0, 0, "a", 0)
    assigned.lose("b", 1)
    assert orders(assigned.look(9, 1 + LATER)) == [LoadShard(1, "a")]
    assert not assigned.complete
    assert assigned.acknowledge(0, 1, "a", 9) == []  # stage 1 still wants a worker of its own
    assert assigned.look(9, 30) == [GrantTag(0, "a"), GrantTag(1, "a")]


def test_a_missing_replica_does_not_keep_the_job_from_beginning() -> None:
    assigned = make_assignment(replicas=(2, 1))
    assigned.enlist(map(make_worker, "abc"))
    assigned.lose("c", 0)
    assigned.acknowledge(0, 0, "a", 1)
    assigned.acknowledge(0, 1, "b", 1)
    assert assigned.look(9, 2) == []
    assert assigned.look(9, 2 + LATER) == [GrantTag(0, "a"), GrantTag(1, "b")]


def test_a_worker_that_cannot_load_a_double_is_not_asked_again() -> None:
    assigned = make_assignment()
    begin(assigned, *"ab")
    assigned.lose("b", 0)
    assert orders(assigned.look(9, LATER)) == [LoadShard(1, "a")]
    assert assigned.give_up(1, "a", 8) == [ReleaseShard("a", 1)]
    assert assigned.look(9, 20) == []
    assert assigned.missing(20) == {1: 20}


# Waiting


def describe(stage: int) -> str:
    return f"stage {stage} has nobody"


def test_waiting_is_said_now_and_then_and_has_no_end() -> None:
    patience = UnassignedStagePolicy("wait", 60)
    assert kinds(patience.look({1: 5.0}, describe, 5)) == ["waiting"]
    assert patience.look({1: 6.0}, describe, 6) == []
    (said,) = patience.look({1: 5 + SAY_SECONDS}, describe, 5 + SAY_SECONDS)
    assert said == StatusLine("waiting for 1 min 05 s: stage 1 has nobody")
    assert not any(isinstance(action, Fail) for action in patience.look({1: 1e6}, describe, 1e6))
    patience.look({}, describe, 2e6)
    assert kinds(patience.look({1: 5.0}, describe, 3e6)) == ["waiting"]


def test_stopping_says_what_is_missing() -> None:
    patience = UnassignedStagePolicy("stop", 60)
    assert kinds(patience.look({1: 5.0}, describe, 5)) == ["waiting"]
    assert patience.look({1: 59.0}, describe, 59) == []
    (fail,) = patience.look({1: 60.0}, describe, 60)
    assert isinstance(fail, Fail) and "stage 1 has nobody" in str(fail.error)


# Anything at all


class ComingAndGoing(SimulatedCluster):
    """A job that begins nothing, so that it does not end while workers come and go."""

    def join(self) -> None:
        if len(self.workers) < 6:
            self.tell(WorkerJoined(make_worker(self.hire())))

    def prepare(self, action: Prepare) -> None:
        pass

    def settle(self) -> None:
        """Let everything that is under way end, and nothing break."""
        self.chooser.calm()
        self.now += 2.0
        while self.todo:
            self.happen(self.todo.pop(0))


@settings(max_examples=campaign_size(40, 2000))
@given(st.data(), st.lists(st.sampled_from([20, 40]), min_size=1, max_size=3), st.integers(0, 2))
def test_whatever_happens_every_stage_ends_up_with_one_worker_that_stays(
    data: st.DataObject, sizes: list[int], standby: int
) -> None:
    """Tags are only granted for shards that are there, and never taken from a stage's last worker."""
    stages = make_stages(*sizes)
    plan = make_plan((1,) * len(stages)).model_copy(update={"stages": stages})
    machine = make_machine(1, plan=plan, limits=Limits(rejects=0, losses=10**6), standby=standby)
    faults = {"join": 100, "leave": 50, "drain": 50, "tick": 400}
    cluster = ComingAndGoing(machine, Chooser(data, most=750), [()], Troubles(faults, pace=(0.0, 0.1, 2.0)))
    cluster.begin(0)
    while not cluster.chooser.is_calm:
        cluster.step()
    assigned = machine.workers
    for _ in range(60):
        cluster.settle()
        if assigned.missing(cluster.now) or not any(
            state.does in ("computes", "loads") and state.worker in cluster.workers for state in assigned.roster()
        ):
            cluster.join()
        cluster.tell(Tick())
    assert assigned.complete
    assert not assigned.missing(cluster.now)
    computing = {(stage, state.worker) for state in assigned.roster() for stage in state.stages}
    assert {place[1:] for place in cluster.tags} == computing, "a tag was not taken back, or never granted"
    assert {stage for stage, _ in computing} == set(range(len(stages)))


@pytest.mark.parametrize("standby", [0, 1])
def test_workers_without_the_tags_hold_nothing(standby: int) -> None:
    assigned = make_assignment(standby=standby)
    stranger = WorkerShape(address="x", threads=1, memory=MEMORY, resources={"CPU": 1})
    assigned.enlist([stranger, make_worker("a")])
    assert set(does(assigned)) == {"a"}
