"""Rows that raise, hang or kill, in a job whose workers die by chance as well."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.runtime.state_machine.faults.poison_bisection import ALONE, FANOUT
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.spec.rows import Fault
from tests.support.chooser import Chooser
from tests.support.factories import make_machine
from tests.support.simulatedcluster import SimulatedCluster
from tests.support.simulatedtasks import Troubles
from tests.support.strategies import KINDS

FAULTS = {"kill": 100, "strand": 15}
Poison = dict[tuple[int, int, int], Fault]


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[list[int]], Poison]:
    """Draw partitions with the rows of each microbatch, and which rows do what."""
    sizes = draw(st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=4), min_size=1, max_size=4))
    rows = [
        (partition, number, row)
        for partition, microbatches in enumerate(sizes)
        for number, size in enumerate(microbatches)
        for row in range(size)
    ]
    return sizes, draw(st.dictionaries(st.sampled_from(rows), KINDS, max_size=5))


@settings(max_examples=150, deadline=None)
@given(st.data(), inputs(), st.integers(0, 4), st.integers(1, 6))
def test_any_poison_and_any_deaths_leave_every_other_row_computed(
    data: st.DataObject, given: tuple[list[list[int]], Poison], deaths: int, window: int
) -> None:
    sizes, poison = given
    machine = make_machine(len(sizes), window=window, limits=Limits(rejects=5, losses=0, seconds=5.0))
    cluster = SimulatedCluster(machine, Chooser(data), sizes, Troubles(FAULTS, poison, deaths))
    cluster.begin(2)
    cluster.run()
    assert cluster.committed == Counter(range(len(sizes)))
    # Whatever was in flight when a worker died may be probed, and is acquitted at once.
    suspects = len(poison) + deaths * window
    assert cluster.probes <= 2 * suspects + (len(poison) + deaths) * (3 * FANOUT["killed"] + ALONE)
