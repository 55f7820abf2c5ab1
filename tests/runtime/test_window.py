"""The window: grows while that helps, shrinks when memory is short, and bounds what a failure costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.runtime.protocol.events import MemoryPressure
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.partitions.window import WindowController
from daskinfer.spec.job.commit import StageTrail
from daskinfer.testing.fixtures.plans import make_plan
from daskinfer.testing.stress.campaigns import campaign_size
from tests.support.chooser import Chooser
from tests.support.factories import make_machine
from tests.support.simulatedcluster import MOST_STEPS, SimulatedCluster
from tests.support.simulatedtasks import Troubles

REPLICAS = (1, 2)
BUDGET = 10_000
MICROBATCHES = 5


def make_flow(window: int = 9, budget: int = BUDGET) -> WindowController:
    plan = make_plan(REPLICAS, window).model_copy(update={"window_bytes": budget})
    return WindowController(plan, PartitionTracker(window, iter(()), 0))


def trail(busiest: float) -> tuple[StageTrail, ...]:
    """Return what a second of a pipeline whose second stage is so busy looks like."""
    parts = [(0, 0.1), (1, 2 * busiest)]
    return tuple(
        StageTrail(stage=stage, microbatches=1, compute=seconds, receive=0, send=0, workers=())
        for stage, seconds in parts
    )


def run(flow: WindowController, busiest: Sequence[float], is_full: bool = True, start: float = 0.0) -> list[int]:
    """Let seconds go by; return the window after each."""
    windows = []
    for second, share in enumerate(busiest):
        flow.look(trail(share), is_full, start + second)
        windows.append(flow.window)
    return windows


def test_grows_while_the_busiest_stage_gets_busier() -> None:
    flow = make_flow()
    windows = run(flow, [0.4] * 6 + [0.5] * 5 + [0.6] * 5 + [0.95] * 30)
    assert windows == sorted(windows) and windows[-1] > windows[0] == 9
    assert windows[-1] == windows[-25]


def test_gives_a_growth_up_that_does_not_help() -> None:
    flow = make_flow()
    windows = run(flow, [0.4] * 50)
    assert max(windows) == 11 and windows[-1] == 9
    assert sum(after > before for before, after in pairwise(windows)) == 1


def test_does_not_grow_while_something_else_is_short() -> None:
    assert run(make_flow(), [0.2] * 30, is_full=False)[-1] == 9


def test_the_budget_is_the_most() -> None:
    flow = make_flow()
    flow.weigh(5_000, 10)
    assert flow.most == 20
    run(flow, [0.1 * 1.3**second for second in range(8) for _ in range(5)])
    assert 9 < flow.window <= 20
    flow.weigh(20_000, 10)
    assert flow.window == 5
    flow.weigh(10_000_000, 10)
    assert flow.window == 4  # two for each stage


def test_shrinks_on_memory_pressure_but_not_at_once_again() -> None:
    flow = make_flow(window=40)
    windows = []
    for second in range(12):
        flow.press(float(second))
        windows.append(flow.window)
    assert windows == [20] * 5 + [10] * 5 + [5] * 2
    assert run(flow, [0.2] * 30, start=12)[-1] == 5


def finish(flow: WindowController, microbatches: int, seconds: float, start: float = 0.0) -> None:
    """Let microbatches finish, one as long after the other as the next."""
    for number in range(microbatches):
        flow.count(start + (number + 1) * seconds / microbatches)


def test_holds_what_is_finished_in_a_second() -> None:
    flow = make_flow(window=6)
    finish(flow, 50, 10)
    assert flow.window == 6
    finish(flow, 400, 10, start=10)
    assert flow.window == pytest.approx(40, abs=1)
    finish(flow, 10_000, 10, start=20)
    assert flow.window == 64
    finish(flow, 10, 10, start=30)
    assert flow.window == 64
    flow.press(40)
    finish(flow, 1_000, 10, start=40)
    assert flow.window == 32
    finish(flow, 10_000, 100, start=50)
    assert flow.window == 64


def test_quick_microbatches_are_no_reason_to_exceed_the_budget() -> None:
    flow = make_flow()
    flow.weigh(5_000, 10)
    finish(flow, 10_000, 10)
    assert flow.window == flow.most == 20


@given(st.lists(st.tuples(st.sampled_from("wplc"), st.floats(0, 1), st.integers(0, 10**6)), max_size=60))
def test_stays_within_its_bounds(steps: list[tuple[str, float, int]]) -> None:
    flow = make_flow()
    for second, (what, share, nbytes) in enumerate(steps):
        match what:
            case "w":
                flow.weigh(nbytes, 10)
            case "p":
                flow.press(second)
            case "c":
                finish(flow, nbytes % 1_000, 1.0, start=second)
            case _:
                flow.look(trail(share), True, second)
        assert 4 <= flow.window <= flow.most


def test_a_number_stays() -> None:
    core = make_machine(window=6)
    work = core._parts.partitions
    core.handle(MemoryPressure("a", 9, 10, True), 1.0)
    assert work.window == 6


@pytest.mark.parametrize("budget", [BUDGET, 0], ids=["adapts", "is fixed"])
@settings(max_examples=campaign_size(15, 500))
@given(data=st.data())
def test_a_death_at_any_time_costs_no_more_than_the_window(budget: int, data: st.DataObject) -> None:
    plan = make_plan((1, 1), 8).model_copy(update={"window_bytes": budget})
    faults = {"death": 20} | ({"pressure": 100} if budget else {})
    troubles = Troubles(faults, pace=(0.0, 0.25, 0.5, 1.0), nbytes=10 * BUDGET)
    cluster = SimulatedCluster(make_machine(12, plan=plan), Chooser(data), [(1,) * MICROBATCHES] * 12, troubles)
    cluster.begin(2)
    for _ in range(MOST_STEPS):
        in_flight = len(cluster.flying())
        # What is computed and not committed is of partitions that are under way: each has something in flight or is
        # being committed.
        places = Counter(partition for _, partition, _ in cluster.computed)
        committing = [count for count in places.values() if count == MICROBATCHES]
        assert len(cluster.computed) <= sum(committing) + (MICROBATCHES - 1) * in_flight
        cluster.step()
        if cluster.is_sealed:
            return
    pytest.fail("the job does not end")
