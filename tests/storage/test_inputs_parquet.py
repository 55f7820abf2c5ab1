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
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs import parquet_bounds
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch


def read_all(url: Path, rows: int, keep: tuple[str, ...] = (), text: str = "text") -> list[RowBatch]:
    table = index_input(Input(url=str(url), partition_rows=rows), {text: "text"}, keep)
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


def test_every_column_keeps_its_type_and_its_nulls(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 2)
    columns: dict[str, Any] = {
        "text": pa.array(["a", None, "c"], pa.large_string()),
        "small": pa.array([1, 2, 3], pa.int8()),
        "gap": pa.array([2**60 + 1, 2, None]),
        "word": pa.array(["x", "y", None]).dictionary_encode(),
        "day": pa.array([day, day, day]),
        "many": pa.array([[1], [2], [3]]),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "a.parquet")
    (batch,) = read_all(tmp_path / "a.parquet", 10, tuple(columns)[1:])
    assert batch.table.schema == table.schema.set(0, pa.field("text", pa.string()))
    assert batch.table.drop(["text"]).equals(table.drop(["text"]).take([0, 2]))
    assert batch.rejects[0].error == "column 'text': is null"
    assert (batch.rejects[0].row, batch.rejects[0].line) == (1, 2)
    assert batch.rejects[0].excerpt.startswith('{"text": null, "small": 2')


def test_files_of_other_types_go_together_where_one_type_holds_all(tmp_path: Path) -> None:
    def write(name: str, **columns: Any) -> None:
        pq.write_table(pa.table({"text": ["a"], **columns}), tmp_path / f"{name}.parquet")

    write("a", n=pa.array([1], pa.int32()), m=pa.nulls(1), d=pa.array([1], pa.timestamp("ms")))
    write("b", n=pa.array([2**60]), m=pa.array([[1]]), d=pa.array([1], pa.timestamp("us")))
    batches = read_all(tmp_path, 2, ("n", "m", "d"))
    assert batches[0].table.column("n").to_pylist() == [1, 2**60]
    assert batches[0].table.column("m").to_pylist() == [None, [1]]
    assert batches[0].table.column("d").cast(pa.int64()).to_pylist() == [1000, 1]
    write("c", n=pa.array([0.5]), m=pa.nulls(1), d=pa.nulls(1))
    with pytest.raises(InputError, match=r"'n' holds int64 in .*b\.parquet and double in .*c\.parquet"):
        read_all(tmp_path, 2, ("n",))


def test_texts_of_a_file_may_all_be_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "b.parquet")
    (batch,) = read_all(tmp_path, 10)
    assert batch.values("text") == ["a"]
    assert [reject.error for reject in batch.rejects] == ["column 'text': is null"] * 2
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match="holds null, not strings"):
        read_all(tmp_path, 10)


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    one = pa.array(["a"])
    pq.write_table(pa.Table.from_arrays([one, one, one], ["text", "id", "id"]), tmp_path / "a.parquet")
    assert read_all(tmp_path, 1)[0].values("text") == ["a"]
    with pytest.raises(InputError, match=r"a\.parquet has 2 columns of the name 'id'"):
        read_all(tmp_path, 1, ("id",))


def test_times_of_96_bits_are_right_in_any_year(tmp_path: Path) -> None:
    far = [datetime.datetime(9999, 12, 31), datetime.datetime(2020, 1, 1, 0, 0, 0, 1), datetime.datetime(1, 1, 1), None]
    values = pa.array(far, pa.timestamp("us"))
    table = pa.table({"text": list("abcd"), "at": values})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    (batch,) = read_all(tmp_path / "a.parquet", 10, ("at",))
    assert batch.table.column("at").cast(pa.timestamp("us")).to_pylist() == [far[1], None]
    assert [reject.row for reject in batch.rejects] == [0, 2]
    assert "1678 to 2262" in batch.rejects[0].error
    section = Input(url=str(tmp_path / "a.parquet"), types={"at": "timestamp[us]"})
    (batch,) = [read_partition(partition_source(index_input(section, {"text": "text"}, ("at",)), 0))]
    assert batch.table.column("at").combine_chunks().equals(values)


def test_one_bad_value_costs_its_row_alone(tmp_path: Path) -> None:
    words = [b"\xff", b"a", b"b", b"\xc3"]
    raw = pa.Array.from_buffers(pa.string(), 4, pa.array(words).buffers())
    columns = {
        "plain": raw,
        "lists": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), raw),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), raw),
    }
    for column, values in columns.items():
        pq.write_table(pa.table({"text": list("abcd"), column: values}), tmp_path / "a.parquet")
        (batch,) = read_all(tmp_path / "a.parquet", 10, (column,))
        assert [(reject.row, reject.error) for reject in batch.rejects] == [
            (row, f"column '{column}': not valid UTF-8") for row in (0, 3)
        ]
        assert str(batch.table.column(column).to_pylist()) in ("['a', 'b']", "[['a'], ['b']]")


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


def write_repeated(path: Path, value: str | bytes, rows: int = 100, **more: Any) -> None:
    """Write a file in which every row has the same value, which is stored once."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"text": values}), path, compression="zstd", **more)


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_value_that_is_stored_once_and_read_often_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_schema: bool
) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 100_000)
    write_repeated(tmp_path / "a.parquet", "x" * 10_000, store_schema=store_schema)
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match=r"100 rows expand from .* to 1,000,000 bytes"):
        read_all(tmp_path, 100)
    assert pa.total_allocated_bytes() <= before
    assert len(read_all(tmp_path, 4)) == 25


NESTED: dict[str, tuple[pa.DataType, Any]] = {
    "list": (pa.list_(pa.string()), lambda text: [text, None, text]),
    "large list": (pa.large_list(pa.large_binary()), lambda text: [text.encode()] * 2),
    "fixed list": (pa.list_(pa.string(), 2), lambda text: [text, text]),
    "lists": (pa.list_(pa.list_(pa.string())), lambda text: [[text], None, [], [text]]),
    "struct": (pa.struct([("a", pa.string()), ("b", pa.int64())]), lambda text: {"a": text * 2, "b": len(text)}),
    "map": (pa.map_(pa.string(), pa.string()), lambda text: [("a" * len(text), text)]),
    "structs": (pa.list_(pa.struct([("a", pa.string())])), lambda text: [{"a": text}, None, {"a": text}]),
    "json": (pa.json_(), lambda text: f'"{text}{text}"'),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_values_that_are_stored_once_and_read_often_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 100_000)
    own, make = NESTED[name]
    values = pa.array([make("x" * 5_000)] * 100, own)
    pq.write_table(pa.table({"id": ["a"] * 100, "text": values}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(InputError, match=r"100 rows expand from .* to 1,0\d\d,\d+ bytes"):
        read_all(tmp_path, 100, ("text",), text="id")
    found = pa.concat_tables([batch.table for batch in read_all(tmp_path, 5, ("text",), text="id")])
    assert found.column("text").combine_chunks().equals(values)


def test_a_long_run_of_numbers_is_refused_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 100_000)
    pq.write_table(pa.table({"id": ["a"], "text": [[7] * 1_000_000]}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with pytest.raises(InputError, match=r"1 row expand from .* to 8,000,\d+ bytes"):
        read_all(tmp_path, 5, ("text",), text="id")


@LONGEST_RECORD.override(1000)
@pytest.mark.parametrize("name", NESTED)
def test_a_row_whose_nested_values_are_too_long_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 9000)
    own, make = NESTED[name]
    values = pa.array([make("a"), make("x" * 1001), None, make("b"), make("x" * 1001), make("c")] * 2, own)
    table = pa.table({"id": ["a"] * 12, "text": values})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=6)
    (batch,) = read_all(tmp_path, 12, ("text",), text="id")
    assert batch.table.column("text").combine_chunks().equals(values.take(pa.array([0, 2, 3, 5, 6, 8, 9, 11])))
    assert [reject.row for reject in batch.rejects] == [1, 4, 7, 10]
    assert "bytes; a row may have at most 1,000" in batch.rejects[0].error


@LONGEST_RECORD.override(1000)
def test_a_row_that_is_too_long_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 2000)
    texts = ["a", "x" * 1001, None, "b", "x" * 1001, "c"]
    pq.write_table(pa.table({"text": texts, "id": range(6)}), tmp_path / "a.parquet")
    (batch,) = read_all(tmp_path, 6, ("id", "text"))
    assert batch.values("text") == ["a", "b", "c"] and batch.table.column("id").to_pylist() == [0, 3, 5]
    assert [reject.row for reject in batch.rejects] == [1, 2, 4]
    assert batch.rejects[0].error == "column 'text': has 1,001 bytes; a row may have at most 1,000"


def test_a_row_group_that_expands_without_end_is_refused_by_its_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 100_000)
    table = pa.table({"text": ["x" * 10_000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    with pytest.raises(InputError, match=r"100 rows expand from .* to 1,000,\d+ bytes"):
        read_all(tmp_path, 100)
    assert len(read_all(tmp_path, 5)) == 20


def test_a_footer_that_no_file_has_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_bounds, "_LARGEST_FOOTER", 1000)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(3000) + (2000).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match="its footer has 2,000 bytes"):
        read_all(tmp_path, 5)


@pytest.mark.parametrize(
    "own",
    [
        *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()),
        pa.dictionary(pa.int8(), pa.string()),
    ],
)
def test_columns_read_as_dictionaries_come_out_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: pa.DataType
) -> None:
    monkeypatch.setattr(parquet_bounds, "_DECODED", 10_000)
    values = [*(f"{n % 7}" * (n % 5) for n in range(500)), None, ""]
    table = pa.table({"text": ["x"] * 502, "kept": pa.array(values, pa.string()).cast(own)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, dictionary_pagesize_limit=20)
    batches = read_all(tmp_path, 150, ("kept",))
    found = pa.concat_tables([batch.table for batch in batches]).column("kept")
    assert not any(batch.rejects for batch in batches)
    assert found.cast(table.schema.field("kept").type).equals(table.column("kept"))
