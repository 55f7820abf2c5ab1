"""The driver's logic under any order of events and faults."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.runtime.state_machine.limits import Limits
from tests.support.chooser import Chooser
from tests.support.factories import make_machine
from tests.support.simulatedcluster import SimulatedCluster
from tests.support.simulatedtasks import Troubles

FAULTS = {"death": 30, "failure": 60, "prepare-failure": 50}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_any_order_of_events_and_faults_commits_every_partition_once(
    data: st.DataObject, sizes: list[int], window: int
) -> None:
    limits = Limits(rejects=0, attempts=99, losses=10**6, patience=10**6)
    machine = make_machine(len(sizes), replicas=(2, 1), window=window, limits=limits)
    cluster = SimulatedCluster(machine, Chooser(data), [(1,) * size for size in sizes], Troubles(FAULTS))
    cluster.begin(3)
    cluster.run()
    assert cluster.committed == Counter(range(len(sizes)))
