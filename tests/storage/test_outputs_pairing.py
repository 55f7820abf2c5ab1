"""Two outputs of the same rows are read side by side; others are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from daskinfer.errors import Incomparable
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.pairing import check_pair, pair_parts
from daskinfer.storage.outputs.reading import SealedOutput, open_output
from daskinfer.storage.outputs.sink import OutputPart
from daskinfer.testing.contracts.sinks import JOB, make_record


def write_numbers(
    url: str,
    partition_rows: int = 4,
    rows: int = 20,
    refused: Sequence[int] = (),
    field: OutputField = OutputField(name="value", kind="int64"),  # noqa: B008 - frozen
    inputs: str = "sha256:1",
    ids: str | None = "r",
) -> None:
    keep = {} if ids is None else {"id": "string", "weight": "float64"}
    sink = open_sink(url, "auto", JOB, [field], keep, partition_rows, rows, {})
    sink.create()
    for number, first in enumerate(range(0, rows, partition_rows)):
        size = min(partition_rows, rows - first)
        partition = Partition(number=number, first_row=first, rows=size, segments=())
        positions = np.array([place for place in range(size) if first + place not in refused], np.int32)
        numbers = positions.astype(np.int64) + first
        rejects = tuple(Reject(row, "in", 1, "bad", "{") for row in range(first, first + size) if row in refused)
        weights = np.where(numbers % 2 == 0, np.nan, numbers / 2)
        kept = pa.table({"id": pa.array([f"{ids}{row}" for row in numbers.tolist()], pa.string()), "weight": weights})
        values = (numbers * 10).astype(field.kind)
        part = OutputPart(partition, positions, {field.name: values}, kept.select(list(keep)), rejects)
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({"inputs": inputs})


@pytest.mark.parametrize("sizes", [(4, 4), (3, 7), (7, 3), (1, 20), (5, 4)])
def test_outputs_of_other_partitions_are_read_side_by_side(tmp_path: Path, sizes: tuple[int, int]) -> None:
    refused = ([2, 3, 4, 5], [0, 11, 19])
    urls = [str(tmp_path / "one.zarr"), str(tmp_path / "other.jsonl")]
    for url, size, gone in zip(urls, sizes, refused, strict=True):
        write_numbers(url, size, 20, gone)
    pairs = list(pair_parts(*map(open_output, urls)))
    assert all(one.partition.first_row == other.partition.first_row for one, other in pairs)
    assert all(one.partition.rows == other.partition.rows for one, other in pairs)
    for side, gone in enumerate(refused):
        parts = [pair[side] for pair in pairs]
        rows = [row for row in range(20) if row not in gone]
        assert [row for part in parts for row in part.rows.tolist()] == rows
        assert [value for part in parts for value in part.arrays["value"].tolist()] == [row * 10 for row in rows]
        assert [name for part in parts for name in part.kept["id"].to_pylist()] == [f"r{row}" for row in rows]
        assert [reject.row for part in parts for reject in part.rejects] == sorted(gone)


def open_pair(folder: Path) -> tuple[SealedOutput, SealedOutput]:
    return open_output(str(folder / "one.zarr")), open_output(str(folder / "other.jsonl"))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"rows": 19}, "are not of the same rows: they have 20 and 19"),
    "kind": ({"field": OutputField(name="value", kind="int32")}, r"columns: value \(int64 and int32\)"),
    "name": ({"field": OutputField(name="x", kind="int64")}, r"value \(int64 and missing\), x \(missing and int64\)"),
    "input": ({"inputs": "sha256:2", "ids": None}, "are not of the same input files"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_outputs_of_other_rows_or_columns_are_refused(tmp_path: Path, case: str) -> None:
    changes, message = OTHERS[case]
    write_numbers(str(tmp_path / "one.zarr"))
    write_numbers(str(tmp_path / "other.jsonl"), **changes)
    with pytest.raises(Incomparable, match=message):
        check_pair(*open_pair(tmp_path))


def test_kept_columns_tell_the_rows_of_a_copied_input(tmp_path: Path) -> None:
    write_numbers(str(tmp_path / "one.zarr"))
    write_numbers(str(tmp_path / "other.jsonl"), inputs="sha256:2", partition_rows=7)
    check_pair(*open_pair(tmp_path))
    assert sum(len(one.rows) for one, _ in pair_parts(*open_pair(tmp_path))) == 20


def test_kept_columns_that_differ_are_other_rows(tmp_path: Path) -> None:
    write_numbers(str(tmp_path / "one.zarr"), refused=[0, 1])
    write_numbers(str(tmp_path / "other.jsonl"), ids="s")
    check_pair(*open_pair(tmp_path))
    with pytest.raises(Incomparable, match="column 'id' of the input differs in row 2"):
        list(pair_parts(*open_pair(tmp_path)))
