from __future__ import annotations

import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskinfer.errors import InputError
from daskinfer.spec.recipe import Input
from daskinfer.storage.inputs.index import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.rows import RowBatch


def read_all(url: Path, rows: int, keep: tuple[str, ...] = ()) -> list[RowBatch]:
    table = index_input(Input(url=str(url), partition_rows=rows), {"text": "text"}, keep)
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def test_partitions_cross_row_groups_and_files(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 7)):
        table = pa.table({"text": [f"{name}{i}" for i in range(count)], "id": range(count)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    batches = read_all(tmp_path, 3, ("id",))
    assert [text for batch in batches for text in batch.values("text")] == [
        *(f"a{i}" for i in range(10)),
        *(f"b{i}" for i in range(7)),
    ]
    assert [len(batch) for batch in batches] == [3, 3, 3, 3, 3, 2]
    assert batches[3].lines.tolist() == [10, 1, 2]
    assert batches[3].table.column("id").to_pylist() == [9, 0, 1]


def test_only_the_needed_row_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(100)]}), path, row_group_size=10, compression="none")
    data = bytearray(path.read_bytes())
    stamp = path.stat()
    spoilt = data.index(b"row 55")
    data[spoilt - 40 : spoilt + 40] = bytes(80)
    table = index_input(Input(url=str(path), partition_rows=10), {"text": "text"})
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read_partition(partition_source(table, 4)).values("text")[0] == "row 40"
    assert read_partition(partition_source(table, 6)).values("text")[0] == "row 60"


def test_every_type_has_its_kind_and_nulls_their_fate(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 2)
    columns: dict[str, Any] = {
        "text": pa.array(["a", None, "c"], pa.large_string()),
        "small": pa.array([1, 2, 3], pa.int8()),
        "gap": pa.array([1, 2, None], pa.int32()),
        "real": pa.array([1.5, None, 2], pa.float32()),
        "flag": [True, False, True],
        "word": pa.array(["x", "y", None]).dictionary_encode(),
        "day": [day, day, day],
        "many": [[1], [2], [3]],
        "wide": pa.array([2**64 - 1, 0, 1], pa.uint64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (batch,) = read_all(tmp_path / "a.parquet", 10, tuple(columns)[1:])
    assert [str(field.type) for field in batch.table.schema] == [
        "string", "int64", "double", "double", "bool", "string", "string", "string", "string",
    ]  # fmt: skip
    assert batch.table.select(["text", "small", "flag", "word", "day", "many", "wide"]).to_pylist() == [
        {
            "text": "a",
            "small": 1,
            "flag": True,
            "word": "x",
            "day": "2024-01-02",
            "many": "[1]",
            "wide": str(2**64 - 1),
        },
        {"text": "c", "small": 3, "flag": True, "word": "", "day": "2024-01-02", "many": "[3]", "wide": "1"},
    ]
    assert batch.rejects[0].error == "column 'text': is null"
    assert (batch.rejects[0].row, batch.rejects[0].line) == (1, 2)
    assert batch.rejects[0].excerpt.startswith('{"text": null, "small": 2')


def test_invalid_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    (batch,) = read_all(tmp_path / "a.parquet", 10)
    assert batch.values("text") == ["good", "fine"]
    assert [(reject.row, reject.error) for reject in batch.rejects] == [(1, "column 'text': not valid UTF-8")]


def test_columns_are_checked_in_every_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"texts": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text'; it has texts"):
        read_all(tmp_path, 2)
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="holds int64, not strings"):
        read_all(tmp_path, 2)


def test_a_batch_is_no_slice_of_something_larger(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["word " * 20] * 5000}), tmp_path / "a.parquet")
    assert len(pickle.dumps(read_all(tmp_path / "a.parquet", 100)[3])) < 20_000
