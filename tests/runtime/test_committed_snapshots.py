"""The map of committed partitions behaves as a dict does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daskinfer.runtime.jobs.committed_snapshots import SnapshotMap


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c", None]))))
def test_like_a_dict(steps: list[tuple[int, str | None]]) -> None:
    ours, plain = SnapshotMap(10), dict[int, str]()
    for partition, snapshot in steps:
        if snapshot is None:
            assert ours.pop(partition, None) == plain.pop(partition, None)
        else:
            ours[partition] = plain[partition] = snapshot
        assert dict(ours) == plain and len(ours) == len(plain)
        assert [number in ours for number in range(-1, 11)] == [number in plain for number in range(-1, 11)]
