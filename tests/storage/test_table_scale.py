"""The partition table when there are many partitions: equal to what was cut, and small in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import Partition, Partitions, Segment
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.testing.stress.campaigns import campaign_size

COUNT = campaign_size(2_000, 100_000)

_numbers = st.integers(0, 2**62)
_segments = st.builds(
    Segment, file=_numbers, begin=_numbers, end=_numbers, rows=st.integers(1, 9), line=_numbers,
    more=st.lists(_numbers, max_size=3).map(tuple),
)  # fmt: skip


@given(st.lists(st.lists(_segments, min_size=1, max_size=3), max_size=6))
def test_partitions_come_back_as_they_were(cut: list[list[Segment]]) -> None:
    partitions: list[Partition] = []
    for number, segments in enumerate(cut):
        rows = sum(segment.rows for segment in segments)
        partitions.append(Partition(number, sum(before.rows for before in partitions), rows, tuple(segments)))
    packed = Partitions(iter(partitions))
    assert list(packed) == partitions
    assert [packed[number] for number in range(-len(packed), len(packed))] == partitions * 2
    assert packed[1:] == tuple(partitions[1:])
    restored = Partitions.restore(json.loads(json.dumps(packed.columns)))
    assert restored == packed and list(restored) == partitions


@pytest.mark.parametrize("change", [{"end": [1]}, {"others": [1]}, {"file": ["x"]}, {"line": [2**70]}, {"rows": None}])
def test_columns_that_do_not_belong_together(change: dict[str, list[int]]) -> None:
    segment = Segment(file=0, begin=0, end=9, rows=3, line=1)
    columns = Partitions(Partition(number, 3 * number, 3, (segment,)) for number in range(2)).columns
    with pytest.raises(ValueError, match="partition table"):
        Partitions.restore(columns | change)


def test_many_partitions_take_little_memory(tmp_path: Path) -> None:
    rows = [json.dumps({"id": row, "text": f"text {row}"}) for row in range(2 * COUNT)]
    # The second file begins in the middle of a partition.
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:COUNT + 1]) + "\n")  # fmt: skip
    (tmp_path / "b.jsonl").write_text("\n\n".join(rows[COUNT + 1 :]))
    del rows
    section = Input(url=f"{tmp_path}/*.jsonl", partition_rows=2)
    tracemalloc.start()
    try:
        table = index_input(section, {"text": "text"}, ["id"])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (len(table.partitions), table.rows) == (COUNT, 2 * COUNT)
    # A partition as an object, with its segment, takes more than four times as much.
    assert held < 200 * COUNT + 500_000
    assert type(table).model_validate_json(table.model_dump_json()) == table
    for number in {0, 1, COUNT // 2 - 1, COUNT // 2, COUNT // 2 + 1, COUNT - 1}:
        batch = read_partition(partition_source(table, number))
        assert batch.table.column("id").to_pylist() == [2 * number, 2 * number + 1]
