from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskinfer.planning.blocks import TURNS, Blocks


@given(partitions=st.integers(1, 3_000), largest=st.integers(1, 40))
def test_every_partition_is_in_one_block(partitions: int, largest: int) -> None:
    blocks = Blocks(partitions, largest)
    ranges = [blocks.partitions_of(block) for block in blocks.starts]
    assert [number for each in ranges for number in each] == list(range(partitions))
    assert all(blocks.find(number) == each[0] for each in ranges for number in each)
    sizes = [len(each) for each in ranges]
    assert sizes == sorted(sizes, reverse=True), "they grow towards the end"
    assert max(sizes) <= largest
    assert sizes[-1] == 1


@pytest.mark.parametrize(("partitions", "count"), [(1, 1), (TURNS, TURNS), (10_000, 1_331)])
def test_there_are_few_where_there_is_much(partitions: int, count: int) -> None:
    assert len(Blocks(partitions, 8).starts) == count
