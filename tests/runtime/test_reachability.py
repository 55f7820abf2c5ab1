"""What the driver's logic does about workers that do not reach each other, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from daskinfer.runtime.protocol.actions import Action, Fail, GrantTag, IncidentRecord, LoadShard, Recovered, Restart
from daskinfer.runtime.protocol.events import LinkRestored, NetworkCut, Prepared, Tick, WorkerJoined, WorkerLost
from daskinfer.runtime.protocol.keys import Link
from daskinfer.runtime.state_machine.faults.reachability import Reachability
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import acknowledge, make_machine, only_fail

A, B, C = "tcp://one:1", "tcp://two:1", "tcp://three:1"
B_LATER = "tcp://two:2"
"""What the nanny of B starts."""


def choose(links: list[Link], posts: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    known = Reachability()
    known.note(links)
    return known.choose(links, posts)


def make_running(*spares: str, limits: Limits | None = None) -> StateMachine:
    """A and B hold the two stages, and partition 0 is prepared."""
    core = make_machine(partitions=2, limits=limits)
    core.start([make_worker(worker) for worker in (A, B)])
    core.handle(acknowledge(0, A), 0)
    core.handle(acknowledge(1, B), 0)
    core.handle(Prepared(0, 1), 0)
    for spare in spares:
        core.handle(WorkerJoined(make_worker(spare)), 0)
    return core


def notes(actions: list[Action]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, IncidentRecord)]


# Who goes


def test_whoever_cannot_reach_another_goes() -> None:
    assert choose([(B, A)], {A: (0,), B: (1,)}) == {B: f"cannot reach {A}"}
    assert choose([(A, B), (B, A)], {A: (0,), B: (1,)}).keys() < {A, B}


def test_whoever_can_be_spared_goes_before() -> None:
    assert choose([(B, A)], {A: (0,), C: (0,), B: (1,)}) == {A: f"cannot be reached by {B}"}


def test_whoever_nobody_reaches_goes_and_not_all_the_others() -> None:
    posts = {A: (0,), B: (1,), C: (2,), "tcp://four:1": (3,)}
    assert choose([(B, A), (C, A), ("tcp://four:1", A)], posts).keys() == {A}


def test_that_others_did_not_reach_it_is_remembered() -> None:
    links = Reachability()
    links.note([(B, A), (C, A)])
    assert links.choose([(C, A)], {A: (0,), C: (1,)}).keys() == {A}, "B has gone already"


def test_of_two_hosts_all_of_one_go() -> None:
    ones, twos = ([f"tcp://{host}:{port}" for port in range(4)] for host in ("one", "two"))
    posts = {worker: (stage,) for stage, workers in enumerate((ones, twos)) for worker in workers}
    off = choose([(two, one) for two in twos for one in ones], posts)
    assert sorted(off) in (ones, twos)


WORKERS = [f"tcp://{host}:{port}" for host in range(4) for port in range(2)]


@given(
    st.lists(st.integers(0, 2), min_size=len(WORKERS), max_size=len(WORKERS)),
    st.lists(st.sampled_from(list(combinations(WORKERS, 2))), unique=True),
)
def test_whoever_stays_reaches_all_that_stay(stages: list[int], links: list[tuple[str, str]]) -> None:
    posts = {worker: (stage,) for worker, stage in zip(WORKERS, stages, strict=True)}
    off = choose(links, posts)
    assert not any(set(link) <= posts.keys() - off.keys() for link in links)
    assert all(any(worker in link for link in links) for worker in off)


# What the core does


def test_a_worker_that_is_cut_off_is_taken_off_and_replaced() -> None:
    core = make_running(C)
    restart, note, load = core.handle(NetworkCut(((B, A),), 8.5), 100)
    assert (restart, load) == (Restart(B), LoadShard(1, C))
    assert note == IncidentRecord("network-cut", f"{B}, which held stage 1, cannot reach {A}", 0, 8.5)
    assert core.handle(WorkerLost(B), 101) == [], "the scheduler says it, too"
    assert core.handle(acknowledge(1, C), 103) == [GrantTag(1, C), Recovered(0, 3)]


def test_its_successor_gets_nothing_to_do_until_it_reaches_the_others() -> None:
    core = make_running()
    core.handle(NetworkCut(((B, A),), 8), 100)
    (note,) = core.handle(WorkerJoined(make_worker(B_LATER)), 102)
    assert isinstance(note, IncidentRecord) and note.kind == "cut-off" and f"{B_LATER} cannot reach {A}" in note.detail
    assert core.handle(Tick(), 103) == []
    assert notes(core.handle(Tick(), 106)) == ["stage-doubled"], "A takes it on"
    core.handle(acknowledge(1, A), 107)
    assert core.handle(LinkRestored((B, A)), 120) == [LoadShard(1, B_LATER)]
    assert "stage-relieved" in notes(core.handle(acknowledge(1, B_LATER), 121))


def test_its_successor_works_once_those_that_it_does_not_reach_are_gone() -> None:
    core = make_running(C)
    core.handle(NetworkCut(((B, A),), 8), 100)
    core.handle(acknowledge(1, C), 101)
    core.handle(WorkerJoined(make_worker(B_LATER)), 102)
    core.handle(WorkerLost(A), 103)
    assert core.handle(Tick(), 104) == [LoadShard(0, B_LATER)]
    (note,) = core.handle(WorkerJoined(make_worker("tcp://one:2")), 105)
    assert isinstance(note, IncidentRecord) and note.kind == "cut-off", "now it is the other way round"


def test_a_spare_on_the_same_host_does_not_take_over() -> None:
    core = make_running("tcp://two:7", C)
    actions = core.handle(NetworkCut(((B, A),), 8), 100)
    assert notes(actions) == ["cut-off", "network-cut"]
    assert actions[-1] == LoadShard(1, C)
    assert core.handle(WorkerLost("tcp://two:7"), 101) == []
    assert core.handle(LinkRestored((B, A)), 102) == [], "it is gone"


def test_a_job_that_nobody_is_left_for_says_why() -> None:
    core = make_machine(limits=Limits(rejects=0, missing="stop", patience=60))
    # Each has room for one stage.
    core.start([make_worker(worker).model_copy(update={"memory": 2}) for worker in (A, B)])
    core.handle(acknowledge(0, A), 0)
    core.handle(acknowledge(1, B), 0)
    core.handle(NetworkCut(((B, A),), 8), 100)
    core.handle(WorkerJoined(make_worker(B_LATER)), 101)
    (waits,) = core.handle(Tick(), 106)
    assert (
        isinstance(waits, IncidentRecord)
        and waits.kind == "waiting"
        and f"; {B_LATER} cannot reach {A}" in waits.detail
    )
    assert f"{B_LATER} cannot reach {A}; waited" in str(only_fail(core.handle(Tick(), 160)))


def test_a_cut_is_one_loss_however_many_workers_it_takes() -> None:
    core = make_machine(replicas=(3, 3), limits=Limits(rejects=0, losses=1))
    ones, twos = ([f"tcp://{host}:{port}" for port in range(3)] for host in ("one", "two"))
    core.start([make_worker(worker) for worker in (*ones, *twos)])
    for stage, workers in enumerate((ones, twos)):
        for worker in workers:
            core.handle(acknowledge(stage, worker), 0)
    actions = core.handle(NetworkCut(tuple((two, one) for two in twos for one in ones), 8), 100)
    assert notes(actions) == ["network-cut"] * 3
    assert not any(isinstance(action, Fail) for action in actions)


def test_cuts_between_others_are_nobodys_affair() -> None:
    core = make_running(C)
    assert core.handle(NetworkCut((("tcp://two:9", A), (B, "tcp://nine:1")), 8), 100) == []


def test_workers_that_are_cut_off_again_and_again_end_the_job() -> None:
    core = make_running(limits=Limits(rejects=0, losses=2))
    worker = B
    for port in range(3):
        # The link is there whenever it is tried, and not when it is needed.
        actions = core.handle(NetworkCut(((worker, A),), 8), 100)
        core.handle(LinkRestored((worker, A)), 100)
        worker = f"tcp://two:{port + 5}"
        core.handle(WorkerJoined(make_worker(worker)), 101)
    assert "3 workers died" in str(only_fail(actions))
