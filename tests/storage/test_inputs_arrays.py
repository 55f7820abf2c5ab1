from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskinfer.errors import InputError
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import ArrayColumn, PartitionTable, Want
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.inputs.text import survey


def index(url: Path, wants: dict[str, Want], keep: tuple[str, ...] = (), rows: int = 3) -> PartitionTable:
    return index_input(Input(url=str(url), partition_rows=rows), wants, keep)


def read_all(table: PartitionTable) -> list[RowBatch]:
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def gather(batches: list[RowBatch], column: str) -> Any:
    return np.concatenate([batch.arrays[column] for batch in batches])


def tensors(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


def lists(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values.tolist(), pa.list_(pa.list_(pa.float16())))


def fixed(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values.tolist(), pa.list_(pa.list_(pa.float16(), 3), 2))


@pytest.mark.parametrize("make", [tensors, lists, fixed])
def test_parquet_arrays_come_back_in_dtype_and_shape(tmp_path: Path, make: Any) -> None:
    values = np.random.default_rng(0).random((10, 2, 3)).astype(np.float16)
    for name, rows in (("a", values[:4]), ("b", values[4:])):
        columns = {"x": make(rows), "n": np.arange(len(rows), dtype=np.int32), "flag": rows[:, 0, 0] > 0.5}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=3)
    table = index(tmp_path, {"x": "array", "n": "array", "flag": "array"}, ("n",))
    assert table.arrays == {
        "x": ArrayColumn(dtype="float16", shape=(2, 3)),
        "n": ArrayColumn(dtype="int32", shape=()),
        "flag": ArrayColumn(dtype="bool", shape=()),
    }
    assert (table.columns, table.reads) == ({"n": "int32"}, ())
    assert PartitionTable.model_validate_json(table.model_dump_json()) == table
    batches = pickle.loads(pickle.dumps(read_all(table)))
    assert gather(batches, "x").dtype == np.float16 and np.array_equal(gather(batches, "x"), values)
    assert gather(batches, "n").tolist() == [*range(4), *range(6)]
    assert gather(batches, "flag").tolist() == (values[:, 0, 0] > 0.5).tolist()
    assert batches[1].table.column("n").to_pylist() == [3, 0, 1]


def test_parquet_rows_of_another_shape_or_with_nulls_are_refused(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0], None, [6.0, None], [7.0, 8.0], []]
    columns = {"x": pa.array(rows, pa.list_(pa.float32())), "id": list("abcdefg")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (batch,) = read_all(index(tmp_path / "a.parquet", {"x": "array"}, ("id",), rows=10))
    assert batch.arrays["x"].tolist() == [[1, 2], [3, 4], [7, 8]]
    assert batch.values("id") == ["a", "b", "f"]
    assert {reject.row: reject.error for reject in batch.rejects} == {
        2: "column 'x': expected an array of shape (2,), got one of shape (1,)",
        3: "column 'x': is null",
        4: "column 'x': expected an array of shape (2,), got one with nulls or lists of unequal lengths",
        6: "column 'x': expected an array of shape (2,), got one of shape (0,)",
    }
    assert batch.rejects[0].excerpt == '{"id": "c"}'


def test_a_partition_may_consist_of_refused_rows(tmp_path: Path) -> None:
    rows = pa.array([[1], [2], None, None], pa.list_(pa.int64(), 1))
    pq.write_table(pa.table({"x": rows}), tmp_path / "a.parquet")
    first, second = read_all(index(tmp_path / "a.parquet", {"x": "array"}, rows=2))
    assert first.arrays["x"].tolist() == [[1], [2]]
    assert second.arrays["x"].shape == (0, 1) and len(second.rejects) == 2


@pytest.mark.parametrize(
    "own", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])]
)
def test_parquet_holds_encoded_images(tmp_path: Path, own: pa.DataType) -> None:
    blobs = [b"\x89PNG 0", b"", None, b"\x89PNG 3"]
    values = [{"bytes": blob, "path": "p"} for blob in blobs] if pa.types.is_struct(own) else blobs
    pq.write_table(pa.table({"image": pa.array(values, own), "id": range(4)}), tmp_path / "a.parquet")
    table = index(tmp_path / "a.parquet", {"image": "image"}, ("id",), rows=10)
    assert (table.columns, table.reads) == ({"image": "binary", "id": "int64"}, ("image",))
    (batch,) = read_all(table)
    assert batch.values("image") == [b"\x89PNG 0", b"\x89PNG 3"]
    assert [(reject.row, reject.error) for reject in batch.rejects] == [
        (1, "column 'image': is empty"),
        (2, "column 'image': is null"),
    ]


def test_parquet_holds_images_that_are_not_encoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    pq.write_table(pa.table({"image": tensors(pixels), "wide": tensors(pixels[..., :2])}), tmp_path / "a.parquet")
    (batch,) = read_all(index(tmp_path / "a.parquet", {"image": "image"}))
    assert np.array_equal(batch.arrays["image"], pixels)
    with pytest.raises(InputError, match=r"column 'wide' of .* holds uint8 of shape \(4, 5, 2\) a row, not images"):
        index(tmp_path / "a.parquet", {"wide": "image"})


def test_jsonl_arrays_take_shape_and_dtype_from_the_first_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(survey, "ARRAY_ROWS", 3)
    rows: list[dict[str, Any]] = [{"x": [[i, 2], [3, 4]], "y": i / 2, "b": [True]} for i in range(3)]
    rows += [
        {**rows[0], "x": [1, 2]},
        {**rows[0], "x": [[1.5, 2], [3, 4]]},
        {**rows[0], "x": [[1], [2, 3]]},
        {**rows[0], "x": "1, 2"},
        {**rows[0], "y": None},
        {"x": rows[0]["x"], "y": 1},
        {**rows[0], "y": 7},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = index(tmp_path / "a.jsonl", {"x": "array", "y": "array", "b": "array"}, ("y",))
    assert table.arrays == {
        "x": ArrayColumn(dtype="int64", shape=(2, 2)),
        "y": ArrayColumn(dtype="float64", shape=()),
        "b": ArrayColumn(dtype="bool", shape=(1,)),
    }
    batches = read_all(table)
    assert gather(batches, "x").tolist() == [*(row["x"] for row in rows[:3]), rows[0]["x"]]
    assert gather(batches, "y").tolist() == [0, 0.5, 1, 7]
    assert gather(batches, "b").dtype == bool
    assert [reject.error for batch in batches for reject in batch.rejects] == [
        "column 'x': expected an array of shape (2, 2), got one of shape (2,)",
        "column 'x': expected int64, got float64",
        "column 'x': its lists have unequal lengths",
        "column 'x': expected numbers, got a string (1, 2)",
        "column 'y': expected numbers, got null",
        "column 'b' is missing",
    ]


def test_csv_numbers_are_arrays_without_a_shape(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x,y\n1,1.5,2\n2,nan,3\n3,,4\n4,2,five\n")
    table = index(tmp_path / "a.csv", {"x": "array", "y": "array"}, ("id",), rows=2)
    assert table.arrays == {"x": ArrayColumn(dtype="float64", shape=()), "y": ArrayColumn(dtype="int64", shape=())}
    first, second = read_all(table)
    assert np.array_equal(first.arrays["x"], [1.5, np.nan], equal_nan=True) and first.arrays["y"].tolist() == [2, 3]
    assert [reject.error for reject in second.rejects] == [
        "column 'x': expected numbers, got null",
        "column 'y': expected numbers, got a string (five)",
    ]


def test_accepted_arrays_can_be_refused_later(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n2\n3\n")
    (batch,) = read_all(index(tmp_path / "a.csv", {"x": "array"}))
    rest = batch.without({1: "too large"})
    assert rest.arrays["x"].tolist() == [1, 3] and rest.positions.tolist() == [0, 2] and len(rest.sources) == 2
    assert [(reject.row, reject.error) for reject in rest.rejects] == [(1, "too large")]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", "b"], "holds string, not numbers"),
        ([b"a", b"b"], "holds binary, not numbers"),
        ([["a"], ["b"]], "holds list<.*>, not numbers"),
        (pa.array([None, None], pa.list_(pa.int8())), "none of the first 2,048 rows is an array"),
    ],
)
def test_what_is_no_array_in_parquet_is_named(tmp_path: Path, column: Any, message: str) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message) as caught:
        index(tmp_path / "a.parquet", {"x": "array"})
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_what_is_no_array_in_lines_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"column 'text' of .*: expected numbers, got a string"):
        index(tmp_path / name, {"text": "array"})


def test_files_must_agree_on_how_images_are_held(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": tensors(np.zeros((1, 2, 2), np.uint8))}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"encoded images in .*a\.parquet and arrays in .*b\.parquet"):
        index(tmp_path, {"image": "image"})
