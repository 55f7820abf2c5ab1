"""Workers come, go, stand by, double up and leave: the crew's decisions, without a cluster."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.runtime.protocol.actions import Action, Fail, GrantToken, LoadShard, ReleaseShard, StatusLine
from daskinfer.runtime.state_machine.workers.placement_policy import RESTART_SECONDS
from daskinfer.runtime.state_machine.workers.unassigned_stages import SAY_SECONDS, UnassignedStagePolicy
from daskinfer.spec.plan import WorkerShape
from daskinfer.testing.stress.campaigns import campaign_size
from tests.runtime.crews import LATER, MEMORY, begin, does, kinds, make_crew, make_worker, obey, orders

# Standby


def test_a_standby_loads_what_it_can_and_gets_no_token() -> None:
    crew = make_crew(standby=1)
    actions = crew.enlist(map(make_worker, "abc"))
    assert actions == [LoadShard(0, "a"), LoadShard(1, "b"), LoadShard(0, "c"), LoadShard(1, "c")]
    granted = obey(crew, actions, 0)[4:]
    assert granted == [GrantToken(0, "a"), GrantToken(1, "b")]
    assert does(crew)["c"] == ("stands by", (), (0, 1))


def test_the_job_begins_before_its_standbys_have_loaded() -> None:
    crew = make_crew(standby=1)
    crew.enlist(map(make_worker, "abc"))
    crew.acknowledge(0, 0, "a", 1)
    assert crew.acknowledge(0, 1, "b", 1) == [GrantToken(0, "a"), GrantToken(1, "b")]
    assert crew.complete


def test_a_standby_takes_over_at_once_and_loads_nothing() -> None:
    crew = make_crew(standby=1)
    begin(crew, *"abc")
    assert crew.lose("b", 10) == (1,)
    assert orders(crew.fill(10)) == [GrantToken(1, "c")]
    assert does(crew)["c"] == ("computes", (1,), (0,))


def test_a_standby_that_still_loads_takes_over_as_soon_as_it_has() -> None:
    crew = make_crew(standby=1)
    crew.enlist(map(make_worker, "abc"))
    crew.acknowledge(0, 0, "a", 0)
    crew.acknowledge(0, 1, "b", 0)
    crew.lose("b", 10)
    assert orders(crew.fill(10)) == []
    assert crew.missing(10 + LATER) == {}
    assert crew.acknowledge(0, 1, "c", 12) == [GrantToken(1, "c")]


def test_the_next_spare_replaces_a_standby_that_was_used() -> None:
    crew = make_crew(standby=1)
    begin(crew, *"abc")
    crew.lose("b", 10)
    crew.fill(10)
    assert crew.enlist([make_worker("d")], 20) == [LoadShard(0, "d"), LoadShard(1, "d")]


def test_a_lost_standby_is_replaced_too() -> None:
    crew = make_crew(standby=1)
    begin(crew, *"abcd")
    assert crew.lose("c", 10) == ()
    assert crew.fill(10) == [LoadShard(0, "d"), LoadShard(1, "d")]


def test_a_standby_with_other_shards_makes_room_for_what_is_lost() -> None:
    crew = make_crew(60, 50, standby=1)
    begin(crew, *"abc")
    assert does(crew)["c"] == ("stands by", (), (0,))
    crew.lose("b", 10)
    actions = crew.fill(10)
    assert actions == [ReleaseShard("c", 0)]
    assert crew.stood_down("c", 0, 11) == [LoadShard(1, "c")]
    assert crew.acknowledge(0, 1, "c", 12) == [GrantToken(1, "c")]


def test_a_standby_follows_to_the_next_generation() -> None:
    crew = make_crew(standby=1)
    begin(crew, *"abc")
    crew.generations.append(1)
    assert (1, "c") in crew.posts
    for stage, worker in crew.posts[:2]:
        crew.acknowledge(1, stage, worker, 5)
    assert crew.is_loaded(1)  # partitions need not wait for it
    crew.lose("b", 10)
    assert orders(crew.fill(10)) == [GrantToken(1, "c", 0)]
    assert crew.acknowledge(1, 1, "c", 11) == [GrantToken(1, "c", 1)]


# No spare


def test_a_stage_is_doubled_after_what_a_restart_takes() -> None:
    crew = make_crew()
    begin(crew, *"ab")
    crew.lose("b", 100)
    assert crew.fill(100) == []
    assert crew.look(9, 100 + RESTART_SECONDS - 0.1) == []
    actions = crew.look(9, 100 + RESTART_SECONDS)
    assert kinds(actions) == ["stage-doubled"]
    assert orders(actions) == [LoadShard(1, "a")]
    assert crew.look(9, 100 + 2 * RESTART_SECONDS) == []
    assert crew.acknowledge(0, 1, "a", 120) == [GrantToken(1, "a")]
    assert does(crew) == {"a": ("computes", (0, 1), ())}


def test_who_has_no_room_does_not_double() -> None:
    crew = make_crew(30, 50)
    begin(crew, *"ab")
    crew.lose("b", 0)
    assert crew.look(9, LATER) == []
    assert crew.missing(LATER) == {1: LATER}
    said = crew.wants.describe_missing(1)
    assert "stage 1 (layers 1)" in said and "GPU: 1" in said and "50 B" in said


def test_a_joiner_takes_the_doubled_stage_over() -> None:
    crew = make_crew()
    begin(crew, *"ab")
    crew.lose("b", 0)
    obey(crew, crew.look(9, LATER), LATER)
    assert crew.enlist([make_worker("c")], 20) == [LoadShard(1, "c")]
    actions = crew.acknowledge(0, 1, "c", 30)
    # First it is granted there, then taken from the doubler, whose shard is freed.
    assert orders(actions) == [GrantToken(1, "c"), ReleaseShard("a", 1)]
    assert kinds(actions) == ["stage-relieved"]
    assert does(crew) == {"a": ("computes", (0,), ()), "c": ("computes", (1,), ())}


def test_a_lost_doubler_leaves_two_stages_to_the_others() -> None:
    crew = make_crew(20, 20, 20)
    begin(crew, *"abc")
    crew.lose("c", 0)
    obey(crew, crew.look(9, LATER), LATER)
    assert does(crew)["a"] == ("computes", (0, 2), ())
    assert crew.lose("a", 10) == (0, 2)
    crew.fill(10)
    actions = obey(crew, crew.look(9, 10 + LATER), 10 + LATER)
    assert [action for action in actions if isinstance(action, GrantToken)] == [GrantToken(0, "b"), GrantToken(2, "b")]


def test_a_worker_lost_before_the_job_begins_is_doubled_too() -> None:
    crew = make_crew()
    crew.enlist(map(make_worker, "ab"))
    crew.acknowledge(0, 0, "a", 0)
    crew.lose("b", 1)
    assert orders(crew.look(9, 1 + LATER)) == [LoadShard(1, "a")]
    assert not crew.complete
    assert crew.acknowledge(0, 1, "a", 9) == []  # stage 1 still wants a worker of its own
    assert crew.look(9, 30) == [GrantToken(0, "a"), GrantToken(1, "a")]


def test_a_missing_replica_does_not_keep_the_job_from_beginning() -> None:
    crew = make_crew(replicas=(2, 1))
    crew.enlist(map(make_worker, "abc"))
    crew.lose("c", 0)
    crew.acknowledge(0, 0, "a", 1)
    crew.acknowledge(0, 1, "b", 1)
    assert crew.look(9, 2) == []
    assert crew.look(9, 2 + LATER) == [GrantToken(0, "a"), GrantToken(1, "b")]


def test_a_worker_that_cannot_load_a_double_is_not_asked_again() -> None:
    crew = make_crew()
    begin(crew, *"ab")
    crew.lose("b", 0)
    assert orders(crew.look(9, LATER)) == [LoadShard(1, "a")]
    assert not crew.is_needed(1, "a") and crew.is_needed(0, "a")
    assert crew.give_up(1, "a", 8) == [ReleaseShard("a", 1)]
    assert crew.look(9, 20) == []
    assert crew.missing(20) == {1: 20}


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


@settings(max_examples=campaign_size(40, 2000), deadline=None)
@given(st.integers(0, 10**9))
def test_whatever_happens_every_stage_ends_up_with_one_worker_that_stays(seed: int) -> None:
    """Tokens are only granted for shards that are there, and never taken from a stage's last worker."""
    source = random.Random(seed)
    crew = make_crew(*(source.choice([20, 40]) for _ in range(source.randint(1, 3))), standby=source.randint(0, 2))
    loaded: set[tuple[int, str]] = set()
    granted: set[tuple[int, str]] = set()
    alive: set[str] = set()
    born, now = 0, 0.0
    todo: list[Action] = []

    def take(actions: list[Action]) -> None:
        nonlocal granted
        for action in actions:
            match action:
                case GrantToken(stage, worker):
                    assert (stage, worker) in loaded
                    assert worker in alive
                    granted.add((stage, worker))
                case ReleaseShard(worker, None):
                    own = {place for place in granted if place[1] == worker}
                    for stage, _ in own:
                        assert any(place[0] == stage and place[1] != worker for place in granted)
                    granted.difference_update(own)
                    todo.append(action)
                case ReleaseShard(worker, stage):
                    if any(place == (stage, worker) for place in granted):
                        granted = {place for place in granted if place != (stage, worker)}
                        assert any(place[0] == stage for place in granted)
                    todo.append(action)
                case LoadShard():
                    todo.append(action)

    for step in range(300):
        now += source.choice([0.0, 0.1, 2.0])
        calm = step > 250
        choice = source.random()
        if (choice < 0.1 or (calm and len(alive) < 4)) and len(alive) < 6:
            born += 1
            alive.add(f"w{born}")
            take(crew.enlist([make_worker(f"w{born}")], now))
        elif choice < 0.15 and alive and not calm:
            victim = source.choice(sorted(alive))
            alive.remove(victim)
            loaded = {place for place in loaded if place[1] != victim}
            granted -= {place for place in granted if place[1] == victim}
            todo = [action for action in todo if getattr(action, "worker", None) != victim]
            crew.lose(victim, now)
            take(crew.fill(now))
        elif choice < 0.2 and alive and not calm:
            take(crew.drain(step, source.choice(sorted(alive)), now))
        elif choice < 0.6 and todo:
            action = todo.pop(source.randrange(len(todo)))
            if isinstance(action, LoadShard):
                loaded.add((action.stage, action.worker))
                take(crew.acknowledge(0, action.stage, action.worker, now))
            elif isinstance(action, ReleaseShard):
                take(crew.stood_down(action.worker, action.stage, now))
        else:
            take(crew.look(5, now))
    for _ in range(60):
        now += 2.0
        while todo:
            action = todo.pop(0)
            if isinstance(action, LoadShard):
                loaded.add((action.stage, action.worker))
                take(crew.acknowledge(0, action.stage, action.worker, now))
            elif isinstance(action, ReleaseShard):
                take(crew.stood_down(action.worker, action.stage, now))
        if not any(state.does in ("computes", "loads") and state.worker in alive for state in crew.roster()) or (
            crew.missing(now)
        ):
            born += 1
            alive.add(f"w{born}")
            take(crew.enlist([make_worker(f"w{born}")], now))
        take(crew.look(5, now))
    assert crew.complete
    assert not crew.missing(now)
    computed = {stage for state in crew.roster() for stage in state.stages}
    assert {stage for stage, _ in granted} == computed
    assert computed == set(range(max(computed) + 1))


@pytest.mark.parametrize("standby", [0, 1])
def test_workers_without_the_tags_hold_nothing(standby: int) -> None:
    crew = make_crew(standby=standby)
    stranger = WorkerShape(address="x", threads=1, memory=MEMORY, resources={"CPU": 1})
    crew.enlist([stranger, make_worker("a")])
    assert set(does(crew)) == {"a"}
