"""Every type of a kept column x where its nulls are x where partitions end x input format x output format, exactly.

What comes out is read with pyarrow, zarr and json, not with daskinfer's own decoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import dataset

from daskinfer.errors import Incomparable, InputError, UsageError
from daskinfer.spec.job import CommitRecord, OutputField
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.column_types import JSON, decode_type, encode_type
from daskinfer.storage.inputs.index import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.json_text import scan_object
from daskinfer.storage.outputs.choice import open_sink
from daskinfer.storage.outputs.merging import merge_part
from daskinfer.storage.outputs.pairing import check_pair, pair_parts
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.reading import open_output, read_part
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, Sink, Written
from daskinfer.storage.rows import RowBatch

ROWS = 4
SIZES = (1, 3, ROWS)
NULLS: dict[str, tuple[bool, ...]] = {
    "none": (False,) * ROWS,
    "some": (True, False, True, False),
    "all": (True,) * ROWS,
    "late": (False, False, False, True),
}
FAR = 10**15 * 60
TOP = 2**63 - 1


@dataclass(frozen=True)
class Case:
    """A type with four values, and what they are elsewhere; None where they cannot be there."""

    own: pa.DataType
    values: pa.Array
    texts: tuple[str, ...] | None
    """As JSON."""
    numbers: Any = None
    """As numpy has them."""


def case(own: pa.DataType, values: Any, texts: Sequence[str] | None, numbers: Any = None) -> Case:
    return Case(own, pa.array(values, own), None if texts is None else tuple(texts), numbers)


def ticks(own: pa.DataType, values: Sequence[int], texts: Sequence[str], dtype: str | None = None) -> Case:
    width = pa.int32() if own.bit_width == 32 else pa.int64()
    numbers = None if dtype is None else np.array(values, np.int64).astype(dtype)
    return Case(own, pa.array(values, width).cast(own), tuple(texts), numbers)


def wrapped(own: pa.DataType, storage: pa.Array, texts: Sequence[str]) -> Case:
    return Case(own, pa.ExtensionArray.from_storage(own, storage), tuple(texts))


BYTES = [b"", b"\xff\x00", b"abc", b"'"]
WORDS = ["", 'ä\n"q"', "1.10", "null"]
WORDS_JSON = ['""', '"ä\\n\\"q\\""', '"1.10"', '"null"']
MINUTES = ["00:00:00", "00:00:01", "12:00:00", "23:59:59"]
PAIRS = [[("a", 1)], [], [("a", TOP), ("b", None)], [("", 0)]]
PAIRS_JSON = ['[["a",1]]', "[]", f'[["a",{TOP}],["b",null]]', '[["",0]]']

CASES: dict[str, Case] = {
    "null": case(pa.null(), [None] * ROWS, ["null"] * ROWS),
    "bool": case(pa.bool_(), [True, False, True, True], ["true", "false", "true", "true"], [True, False, True, True]),
    **{
        f"{sign}int{bits}": case(
            getattr(pa, f"{sign}int{bits}")(),
            [low := 0 if sign else -(2 ** (bits - 1)), high := 2 ** (bits - bool(not sign)) - 1, 0, 1],
            [str(low), str(high), "0", "1"],
            np.array([low, high, 0, 1], f"{sign}int{bits}"),
        )
        for bits in (8, 16, 32, 64)
        for sign in ("", "u")
    },
    "float16": case(
        pa.float16(),
        np.array([0.5, -0.0, 65504, 6e-8], np.float16),
        ["0.5", "-0.0", "65504.0", "5.960464477539063e-8"],
        np.array([0.5, -0.0, 65504, 6e-8], np.float16),
    ),
    "float32": case(
        pa.float32(),
        [0.1, -0.0, 3e38, 1.0],
        [repr(float(np.float32(x))) for x in (0.1, -0.0, 3e38, 1.0)],
        np.array([0.1, -0.0, 3e38, 1.0], np.float32),
    ),
    "float64": case(
        pa.float64(), [0.1, -0.0, 5e-324, 1e300], ["0.1", "-0.0", "5e-324", "1e+300"], [0.1, -0.0, 5e-324, 1e300]
    ),
    "decimal": case(
        pa.decimal128(38, 2),
        [Decimal("1.10"), Decimal("-0.01"), Decimal(10**35), Decimal("0.00")],
        ["1.10", "-0.01", f"{10**35}.00", "0.00"],
    ),
    "decimal256": case(
        pa.decimal256(76, 0), [Decimal(10**75), Decimal(1), Decimal(-1), Decimal(0)], [str(10**75), "1", "-1", "0"]
    ),
    "date32": ticks(
        pa.date32(),
        [0, 19000, 2932897, -719529],
        ['"1970-01-01"', '"2022-01-08"', '"+10000-01-01"', '"-0001-12-31"'],
        "M8[D]",
    ),
    "time32[ms]": ticks(
        pa.time32("ms"), [0, 1, 43200000, 86399999], [f'"{text}"' for text in (
            "00:00:00.000", "00:00:00.001", "12:00:00.000", "23:59:59.999")]
    ),
    "time64[ns]": ticks(
        pa.time64("ns"), [0, 1, 43200000000000, 86399999999999], [f'"{text}"' for text in (
            "00:00:00.000000000", "00:00:00.000000001", "12:00:00.000000000", "23:59:59.999999999")]
    ),
    "timestamp[ms]": ticks(
        pa.timestamp("ms"),
        [0, -1, 1600000000001, 253402300800000],
        [f'"{text}"' for text in (
            "1970-01-01T00:00:00.000", "1969-12-31T23:59:59.999", "2020-09-13T12:26:40.001",
            "+10000-01-01T00:00:00.000")],
        "M8[ms]",
    ),
    "timestamp[us]": ticks(
        pa.timestamp("us"),
        [0, FAR, 1600000000000001, -1],
        [f'"{text}"' for text in (
            "1970-01-01T00:00:00.000000", "+3871-04-29T10:40:00.000000".removeprefix("+"),
            "2020-09-13T12:26:40.000001", "1969-12-31T23:59:59.999999")],
        "M8[us]",
    ),
    "timestamp[ns]": ticks(
        pa.timestamp("ns"),
        [0, TOP, 1600000000000000001, -TOP],
        [f'"{text}"' for text in (
            "1970-01-01T00:00:00.000000000", "2262-04-11T23:47:16.854775807",
            "2020-09-13T12:26:40.000000001", "1677-09-21T00:12:43.145224193")],
        "M8[ns]",
    ),
    "timestamp[us, tz]": ticks(
        pa.timestamp("us", "Europe/Berlin"),
        [0, 1600000000000001, -1, 1],
        [f'"{text}Z"' for text in (
            "1970-01-01T00:00:00.000000", "2020-09-13T12:26:40.000001", "1969-12-31T23:59:59.999999",
            "1970-01-01T00:00:00.000001")],
    ),
    "duration[ns]": ticks(
        pa.duration("ns"), [0, TOP, -1, 1500000000],
        ['"PT0S"', '"PT9223372036.854775807S"', '"-PT0.000000001S"', '"PT1.500000000S"'],
        "m8[ns]",
    ),
    "string": case(pa.string(), WORDS, WORDS_JSON, WORDS),
    "large_string": case(pa.large_string(), WORDS, WORDS_JSON, WORDS),
    "string_view": case(pa.string_view(), WORDS, WORDS_JSON, WORDS),
    "dictionary": Case(
        pa.dictionary(pa.int32(), pa.string()), pa.array(WORDS).dictionary_encode(), tuple(WORDS_JSON), WORDS
    ),
    "binary": case(pa.binary(), BYTES, None),
    "large_binary": case(pa.large_binary(), BYTES, None),
    "fixed_binary": case(pa.binary(4), [bytes(range(i, i + 4)) for i in range(ROWS)], None),
    "list": case(pa.list_(pa.int64()), [[], [TOP], [None, 1], [2, 3, 4]], ["[]", f"[{TOP}]", "[null,1]", "[2,3,4]"]),
    "list_view": case(pa.list_view(pa.int8()), [[1], [], [2, 3], [None]], ["[1]", "[]", "[2,3]", "[null]"]),
    "large_list": case(
        pa.large_list(pa.string()), [["a"], [], [None], ["b", "c"]], ['["a"]', "[]", "[null]", '["b","c"]']
    ),
    "fixed_list": case(
        pa.list_(pa.float32(), 2), [[0, 1], [2, 3], [4, 5], [6, 7]],
        ["[0.0,1.0]", "[2.0,3.0]", "[4.0,5.0]", "[6.0,7.0]"], np.arange(8, dtype=np.float32).reshape(4, 2),
    ),
    "struct": case(
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        [{"a": TOP, "b": ["x"]}, {"a": None, "b": None}, {"a": 0, "b": []}, {"a": 1, "b": [None]}],
        [f'{{"a":{TOP},"b":["x"]}}', '{"a":null,"b":null}', '{"a":0,"b":[]}', '{"a":1,"b":[null]}'],
    ),
    "times in a list": case(
        pa.list_(pa.timestamp("ns")), [[1], [], [None], [0, 0]],
        ['["1970-01-01T00:00:00.000000001"]', "[]", "[null]", json.dumps(["1970-01-01T00:00:00.000000000"] * 2).replace(" ", "")],
    ),
    "bytes in a struct": case(pa.struct([("a", pa.binary())]), [{"a": value} for value in BYTES], None),
    "map": case(pa.map_(pa.string(), pa.int64()), PAIRS, PAIRS_JSON),
    "tensor": wrapped(
        pa.fixed_shape_tensor(pa.int32(), (2, 2)), pa.array([[i, 1, 2, 3] for i in range(ROWS)], pa.list_(pa.int32(), 4)),
        [f"[[{i},1],[2,3]]" for i in range(ROWS)],
    ),
    "uuid": wrapped(
        pa.uuid(), pa.array([bytes(range(i, i + 16)) for i in range(ROWS)], pa.binary(16)),
        [f'"{UUID(bytes=bytes(range(i, i + 16)))}"' for i in range(ROWS)],
    ),
    "json": wrapped(JSON, pa.array(["1.10", "[1]", '"a"', "{}"]), ["1.10", "[1]", '"a"', "{}"]),
}  # fmt: skip


KEPT_AS = {pa.string_view(): pa.string()}


def decode(values: pa.Array) -> pa.Array:
    """Return values in a form in which equal ones are equal."""
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    return values.cast(KEPT_AS.get(values.type, values.type))


def with_nulls(values: pa.Array, pattern: str) -> pa.Array:
    """Return values with some of them missing."""
    pieces = [pa.nulls(1, values.type) if gone else values.slice(i, 1) for i, gone in enumerate(NULLS[pattern])]
    return pa.concat_arrays(pieces)


def column_of(name: str, pattern: str) -> str:
    return f"{name}/{pattern}"


def run(table: PartitionTable, keep: Sequence[str], url: Path, format: str) -> list[RowBatch]:
    """Do what a job does with kept columns, and return what it read."""
    layout = {column: table.columns[column] for column in keep}
    fields = (OutputField(name="n", kind="int64"),)
    sink = open_sink(str(url), format, "job", fields, layout, table.partition_rows, table.rows, {})
    sink.create()
    batches = []
    for partition in table.partitions:
        batch = read_partition(partition_source(table, partition.number))
        write(sink, batch, keep)
        batches.append(batch)
    sink.seal({"job": "job"})
    return batches


def write(sink: Sink, batch: RowBatch, keep: Sequence[str]) -> Written:
    part = make_part(batch, keep)
    written = sink.write(part)
    sink.commit(
        CommitRecord(
            job="job", snapshot="s", partition=part.partition.number, epoch=1, rows_in=part.partition.rows,
            rows_out=len(part.positions), rows_quarantined=len(part.rejects), tokens=0, padded_tokens=0,
            microbatches=(), digest=written.digest, path=written.path, trail=(),
        )
    )  # fmt: skip
    return written


def make_part(batch: RowBatch, keep: Sequence[str]) -> OutputPart:
    return OutputPart(
        batch.partition,
        batch.positions,
        {"n": batch.positions.astype(np.int64)},
        batch.table.select(keep),
        batch.rejects,
    )


def read_jsonl(url: Path) -> list[dict[str, Any]]:
    """Return rows as key -> JSON text, by a decoder of the standard library."""
    rows = []
    for path in sorted(url.glob("part-*.jsonl")):
        for line in path.read_bytes().decode().split("\n"):
            if line:
                rows.append(json.loads(line, parse_float=str, parse_int=str))
                json.loads(line, parse_constant=pytest.fail)
    return rows


def read_zarr(url: Path) -> Any:
    return zarr.open_group(str(url), mode="r")


def read_parquet(url: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(url.glob("part-*.parquet"))])


def expect_json(case: Case, pattern: str) -> list[Any]:
    assert case.texts is not None
    texts = ["null" if gone else text for text, gone in zip(case.texts, NULLS[pattern], strict=True)]
    return [json.loads(text, parse_float=str, parse_int=str) for text in texts]


@pytest.mark.parametrize("rows", SIZES)
def test_parquet_to_parquet(tmp_path: Path, rows: int) -> None:
    columns = {column_of(name, p): with_nulls(one.values, p) for name, one in CASES.items() for p in NULLS}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    table = index_input(
        Input(url=str(tmp_path / "in.parquet"), partition_rows=rows), {"text": "text"}, [*columns], "parquet"
    )
    assert not [
        reject for batch in run(table, [*columns], tmp_path / "out.parquet", "parquet") for reject in batch.rejects
    ]
    found = read_parquet(tmp_path / "out.parquet")
    assert found.column_names == ["row", *columns, "n"]
    for name, values in columns.items():
        assert found.schema.field(name).type == KEPT_AS.get(values.type, values.type), name
        assert decode(found.column(name).combine_chunks()).equals(decode(values)), name


@pytest.mark.parametrize("rows", SIZES)
def test_parquet_to_jsonl(tmp_path: Path, rows: int) -> None:
    columns = {column_of(name, p): with_nulls(one.values, p) for name, one in CASES.items() for p in NULLS}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"), partition_rows=rows)
    keep = [column_of(name, p) for name, one in CASES.items() if one.texts is not None for p in NULLS]
    table = index_input(section, {"text": "text"}, keep, "jsonl")
    run(table, keep, tmp_path / "out.jsonl", "jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [*found[0]] == ["row", *keep, "n"]
    for name, one in CASES.items():
        for pattern in NULLS:
            column = column_of(name, pattern)
            if one.texts is None:
                with pytest.raises(InputError, match=r"holds .*, which a jsonl output cannot hold"):
                    index_input(section, {"text": "text"}, [column], "jsonl")
            else:
                assert [row[column] for row in found] == expect_json(one, pattern), column


@pytest.mark.parametrize("rows", SIZES)
def test_parquet_to_zarr(tmp_path: Path, rows: int) -> None:
    columns = {f"{name}_{p}": with_nulls(one.values, p) for name, one in CASES.items() for p in NULLS}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"), partition_rows=rows)
    keep = [f"{name}_none" for name, one in CASES.items() if one.numbers is not None]
    table = index_input(section, {"text": "text"}, keep, "zarr")
    run(table, keep, tmp_path / "out.zarr", "zarr")
    found = read_zarr(tmp_path / "out.zarr")
    for name, one in CASES.items():
        if one.numbers is None and name != "json":
            with pytest.raises(InputError, match="which a zarr output cannot hold\nWrite Parquet"):
                index_input(section, {"text": "text"}, [f"{name}_none"], "zarr")
        elif one.numbers is not None:
            values = found[f"{name}_none"][:]
            assert values.tolist() == np.array(one.numbers).tolist(), name
            if not isinstance(one.numbers, list):
                assert values.dtype == one.numbers.dtype and values.tobytes() == one.numbers.tobytes()
            if name != "fixed_list":  # whose nulls the footer does not tell of
                with pytest.raises(InputError, match="_late' has 1 null, which a zarr output cannot hold"):
                    index_input(section, {"text": "text"}, [f"{name}_late"], "zarr")
    table = index_input(section, {"text": "text"}, ["fixed_list_late"], "zarr")
    batches = run(table, ["fixed_list_late"], tmp_path / "late.zarr", "zarr")
    assert [(reject.row, reject.error) for batch in batches for reject in batch.rejects] == [
        (3, "column 'fixed_list_late': a null, which Zarr cannot hold")
    ]
    assert read_zarr(tmp_path / "late.zarr")["valid"][:].tolist() == [True, True, True, False]


ZARR_ONLY = {
    "timestamp[s]": ticks(pa.timestamp("s"), [0, 1, FAR // 10**6, -1], [f'"{text}"' for text in (
        "1970-01-01T00:00:00", "1970-01-01T00:00:01", "3871-04-29T10:40:00", "1969-12-31T23:59:59")], "M8[s]"),
    "duration[s]": ticks(pa.duration("s"), [0, 1, -1, TOP], ['"PT0S"', '"PT1S"', '"-PT1S"', f'"PT{TOP}S"'], "m8[s]"),
}  # fmt: skip


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("format", ["parquet", "jsonl", "zarr"])
def test_zarr_to_all(tmp_path: Path, rows: int, format: str) -> None:
    cases = {name: one for name, one in (CASES | ZARR_ONLY).items() if one.numbers is not None and name != "dictionary"}
    group: Any = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    for name, one in cases.items():
        values = np.array(one.numbers)
        array = group.create_array(
            name, shape=values.shape, chunks=values.shape, dtype="string" if values.dtype.kind == "U" else values.dtype
        )
        array[:] = np.array(one.numbers, object) if values.dtype.kind == "U" else values
    group.create_array("text", shape=(ROWS,), dtype="string")[:] = np.array(list("abcd"), object)
    table = index_input(Input(url=str(tmp_path / "in.zarr"), partition_rows=rows), {"text": "text"}, [*cases], format)
    run(table, [*cases], tmp_path / f"out.{format}", format)
    if format == "jsonl":
        lines = read_jsonl(tmp_path / "out.jsonl")
        assert {name: [row[name] for row in lines] for name in cases} == {
            name: expect_json(one, "none") for name, one in cases.items()
        }
    elif format == "zarr":
        found = read_zarr(tmp_path / "out.zarr")
        assert all(found[name][:].tolist() == np.array(one.numbers).tolist() for name, one in cases.items())
        assert all(found[name].dtype == group[name].dtype for name in cases)
    else:
        rows_found = read_parquet(tmp_path / "out.parquet")
        for name, one in cases.items():
            column = rows_found.column(name).cast(one.own).combine_chunks()
            assert column.equals(one.values), name


def test_missing_times_of_zarr_are_nulls(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    group.create_array("at", data=np.array(["NaT", "2020-01-01"], "M8[ns]"))
    group.create_array("text", shape=(2,), dtype="string")[:] = np.array(["a", "b"], object)
    section = Input(url=str(tmp_path / "in.zarr"))
    run(index_input(section, {"text": "text"}, ["at"], "jsonl"), ["at"], tmp_path / "out.jsonl", "jsonl")
    assert [row["at"] for row in read_jsonl(tmp_path / "out.jsonl")] == [None, "2020-01-01T00:00:00.000000000"]


JSONL = {
    "bool": ["true", "false", "true", "false"],
    "int": ["0", "-1", str(2**63 - 1), str(-(2**63))],
    "unsigned": [str(2**64 - 1), "0", "1", "2"],
    "big": [str(10**40), "1", "2", "3"],
    "both": [str(2**64 - 1), "-1", "0", "0"],
    "float": ["1.10", "1e3", "-0.0", "0.30000000000000004"],
    "long": ["0.10000000000000001", "1.0", "5e-324", "1.7976931348623157e308"],
    "number": ["1", "2.5", str(2**60), "-7"],
    "inexact": ["0.5", str(2**53 + 1), "1", "1"],
    "digits": ["0.1234567890123456789", "1.0", "1", "1"],
    "string": ['"a"', '"\\u00e4 \\/"', '""', '"null"'],
    "mixed": ["1", '"1"', "true", "[1.50]"],
    "nested": ['{"b": 1, "a": [1.10]}', "{}", '{"a": null}', '{"\\u00e4": 10000000000000000000000}'],
}
JSONL_TYPES = {
    "bool": "bool", "int": "int64", "unsigned": "uint64", "big": "json", "both": "json", "float": "float64",
    "long": "float64", "number": "float64", "inexact": "json", "digits": "json", "string": "string", "mixed": "json",
    "nested": "json",
}  # fmt: skip


def write_jsonl(path: Path, pattern: str) -> list[str]:
    lines = []
    for row in range(ROWS):
        pairs = [f'"text": "{row}"']
        for name, texts in JSONL.items():
            gone = NULLS[pattern][row]
            if not (gone and row % 2):  # null, or no key at all
                pairs.append(f'"{name}":  {"null" if gone else texts[row]}')
        lines.append("{" + ", ".join(pairs) + "}\n")
    if pattern == "all":
        lines.append("{" + ", ".join(f'"{name}": null' for name in ["text", *JSONL]) + "}\n")
    path.write_text("".join(lines))
    return [*JSONL]


@pytest.mark.parametrize("pattern", NULLS)
@pytest.mark.parametrize("rows", SIZES)
def test_jsonl_to_jsonl_copies_the_text(tmp_path: Path, rows: int, pattern: str) -> None:
    keep = write_jsonl(tmp_path / "in.jsonl", pattern)
    table = index_input(Input(url=str(tmp_path / "in.jsonl"), partition_rows=rows), {"text": "text"}, keep, "jsonl")
    run(table, keep, tmp_path / "out.jsonl", "jsonl")
    lines = [
        line
        for path in sorted((tmp_path / "out.jsonl").glob("part-*.jsonl"))
        for line in path.read_text().splitlines()
        if line
    ]
    for row, line in enumerate(lines):
        gone = NULLS[pattern][row]
        pairs = ",".join(f'"{name}":{"null" if gone else JSONL[name][row]}' for name in keep)
        assert line == f'{{"row":{row},{pairs},"n":{row % rows}}}'
    assert len(lines) == ROWS


@pytest.mark.parametrize("pattern", NULLS)
@pytest.mark.parametrize("rows", SIZES)
def test_jsonl_to_parquet_and_zarr(tmp_path: Path, rows: int, pattern: str) -> None:
    keep = write_jsonl(tmp_path / "in.jsonl", pattern)
    section = Input(url=str(tmp_path / "in.jsonl"), partition_rows=rows)
    table = index_input(section, {"text": "text"}, keep, "parquet")
    run(table, keep, tmp_path / "out.parquet", "parquet")
    found = read_parquet(tmp_path / "out.parquet")
    for name in keep:
        values = found.column(name).to_pylist()
        if pattern == "all":
            assert values == [None] * ROWS
            continue
        assert pattern != "none" or table.columns[name] == JSONL_TYPES[name]
        for value, text, gone in zip(values, JSONL[name], NULLS[pattern], strict=True):
            if gone:
                assert value is None
            elif table.columns[name] == "json":
                assert value == text
            else:
                assert value == json.loads(text) and type(value) in (type(json.loads(text)), float), name
    if pattern == "none":
        run(index_input(section, {"text": "text"}, keep, "zarr"), keep, tmp_path / "out.zarr", "zarr")
        group = read_zarr(tmp_path / "out.zarr")
        assert {name: group[name][:].tolist() for name in keep} == {
            name: found.column(name).to_pylist() for name in keep
        }
    else:
        with pytest.raises(InputError, match=r"has \d nulls?, which a zarr output cannot hold"):
            index_input(section, {"text": "text"}, keep, "zarr")


FIELDS = ["007", "1.10", " a ", "", 'he said "x"', "1e3", "NaN", "true", "12:30", "2020-01-01"]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("format", ["parquet", "jsonl", "zarr"])
def test_csv_fields_are_copied(tmp_path: Path, rows: int, format: str) -> None:
    quoted = ['"' + field.replace('"', '""') + '"' if '"' in field else field for field in FIELDS]
    (tmp_path / "in.csv").write_text("text,field\n" + "".join(f"t,{field}\n" for field in quoted))
    table = index_input(Input(url=str(tmp_path / "in.csv"), partition_rows=rows), {"text": "text"}, ["field"], format)
    run(table, ["field"], tmp_path / f"out.{format}", format)
    read: dict[str, Callable[[Path], list[Any]]] = {
        "parquet": lambda url: read_parquet(url).column("field").to_pylist(),
        "jsonl": lambda url: [row["field"] for row in read_jsonl(url)],
        "zarr": lambda url: read_zarr(url)["field"][:].tolist(),
    }
    assert read[format](tmp_path / f"out.{format}") == FIELDS


DECLARED: dict[str, tuple[list[str], list[Any], list[str]]] = {
    "int8": (["-128", "127", "007", ""], [-128, 127, 7, None], ["128", "1.0", "x", " 1"]),
    "uint64": ([str(2**64 - 1), "0"], [2**64 - 1, 0], ["-1", str(2**64)]),
    "float64": (["1.10", "1e3", "nan", "inf", "5e-324"], [1.1, 1e3, "nan", np.inf, 5e-324],
                ["1e400", str(2**53 + 1), "0.12345678901234567890", "1e-400", "x"]),
    "float32": (["0.1", "16777216"], [float(np.float32(0.1)), 2.0**24], ["16777217", "0.123456789", "1e39"]),
    "float16": (["0.5", "65504"], [0.5, 65504.0], ["2049", "70000"]),
    "bool": (["true", "FALSE", "1", "0"], [True, False, True, False], ["yes", "2"]),
    "decimal128(10, 2)": (["1.1", "-0.01", "1e3"], [Decimal("1.10"), Decimal("-0.01"), Decimal(1000)],
                          ["1.105", "123456789.1", "x"]),
    "date32": (["2020-01-01", "10000-01-01", "-0001-12-31"], [18262, 2932897, -719529], ["2020-13-01", "2020-01-01T00:00"]),
    "time32[s]": (["12:30", "23:59:59"], [45000, 86399], ["24:00", "12:30:00.5"]),
    "time64[ns]": (["00:00:00.000000001"], [1], ["1"]),
    "timestamp[us]": (["2020-01-01", "2020-01-01 00:00:00.000001", "+12345-01-01T00:00"],
                      [1577836800000000, 1577836800000001, 327403382400000000],
                      ["2020-01-01T00:00:00.0000001", "2020-01-01T00:00:00Z"]),
    "timestamp[us, tz=UTC]": (["2020-01-01T01:00:00+01:00", "2020-01-01T00:00:00Z"], [1577836800000000] * 2,
                              ["2020-01-01T00:00:00"]),
    "timestamp[ns]": (["2020-01-01T00:00:00.000000001"], [1577836800000000001], ["2500-01-01", "12345-01-01"]),
    "json": (["1.10", '"a"', "[1]"], ["1.10", '"a"', "[1]"], ["a", "NaN"]),
    "string": (["007", ""], ["007", ""], []),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_declared_types(tmp_path: Path, name: str, source: str) -> None:
    right, values, wrong = DECLARED[name]
    path = tmp_path / f"in.{source}"
    if source == "csv":
        fields = ['"' + text.replace('"', '""') + '"' if '"' in text else text for text in [*right, *wrong]]
        path.write_text("text,x\n" + "".join(f"t,{field}\n" for field in fields))
    elif source == "parquet":
        kept = [(text, value) for text, value in zip(right, values, strict=True) if value is not None]
        right, values = [text for text, _ in kept], [value for _, value in kept]
        pq.write_table(pa.table({"text": ["t"] * len([*right, *wrong]), "x": [*right, *wrong]}), path)
    else:
        own = decode_type(name)
        is_number = pa.types.is_integer(own) or pa.types.is_floating(own) or pa.types.is_decimal(own)
        if is_number:
            kept = [
                (text, value)
                for text, value in zip(right, values, strict=True)
                if text not in ("007", "", "nan", "inf")
            ]
            right, values = [text for text, _ in kept], [value for _, value in kept]
            wrong = [json.dumps(text) if text in ("x", " 1") else text for text in wrong]
        elif pa.types.is_boolean(own):
            right, values, wrong = ["true", "false"], [True, False], ['"yes"', "2"]
        elif own != JSON:
            right, wrong = [json.dumps(text) for text in right], [json.dumps(text) for text in wrong]
        if own == JSON:
            wrong = ["NaN"]
        path.write_text("".join(f'{{"text": "t", "x": {text}}}\n' for text in [*right, *wrong]))
    table = index_input(Input(url=str(path), partition_rows=2, types={"x": name}), {"text": "text"}, ["x"], "parquet")
    batches = [read_partition(partition_source(table, partition.number)) for partition in table.partitions]
    found = pa.concat_tables([batch.table for batch in batches]).column("x").combine_chunks()
    assert found.type == decode_type(name)
    if pa.types.is_temporal(found.type):
        found = found.view(pa.int32() if found.type.bit_width == 32 else pa.int64())
    assert ["nan" if str(value) == "nan" else value for value in found.to_pylist()] == list(values)
    refused = [reject for batch in batches for reject in batch.rejects]
    assert [reject.row for reject in refused] == [*range(len(right), len(right) + len(wrong))]
    assert all(reject.error.startswith("column 'x': ") for reject in refused)


@pytest.mark.parametrize("source", ["parquet", "jsonl"])
@pytest.mark.parametrize("rows", SIZES)
def test_a_number_that_is_not_finite_costs_its_row_in_jsonl(tmp_path: Path, rows: int, source: str) -> None:
    if source == "parquet":
        columns = {
            "x": pa.array([1.0, np.nan, 2.0, 3.0]),
            "y": pa.array([[1.0], [1.0], [np.inf], [2.0]]),
            "s": ["NaN"] * 4,
        }
        pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    else:
        lines = ['"x": 1.0, "y": [1]', '"x": NaN, "y": [1]', '"x": 2.0, "y": [-Infinity]', '"x": 3.0, "y": [2]']
        (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "t", "s": "NaN", {line}}}\n' for line in lines))
    keep = ["x", "y", "s"]
    section = Input(url=str(tmp_path / f"in.{source}"), partition_rows=rows)
    batches = run(index_input(section, {"text": "text"}, keep, "jsonl"), keep, tmp_path / "out.jsonl", "jsonl")
    assert [reject.row for batch in batches for reject in batch.rejects] == [1, 2]
    assert [row["x"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["1.0", "3.0"]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "zarr"])
def test_a_retry_merges_every_type(tmp_path: Path, format: str) -> None:
    def fits(one: Case) -> bool:
        return {"parquet": True, "jsonl": one.texts is not None, "zarr": one.numbers is not None}[format]

    columns = {name.replace("/", ""): one.values for name, one in CASES.items() if fits(one)}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"), partition_rows=ROWS)
    table = index_input(section, {"text": "text"}, [*columns], format)
    batch = read_partition(partition_source(table, 0))
    keep = {column: table.columns[column] for column in columns}
    fields = (OutputField(name="n", kind="int64"),)

    def make_sink(name: str) -> Sink:
        sink = open_sink(str(tmp_path / name), format, "job", fields, keep, ROWS, ROWS, {})
        sink.create()
        return sink

    whole = write(make_sink("whole"), batch, [*columns])
    holed = write(make_sink("holed"), batch.without({1: "why", 3: "why"}), [*columns])
    layout = OutputLayout("job", fields, keep, ROWS, ROWS, {})
    before = read_part(str(tmp_path / "holed"), layout, 0, holed.path, holed.digest)
    merged = merge_part(before, make_part(batch.only([1, 3]), [*columns]))
    digest = make_sink("merged").write(merged).digest
    if format == "parquet":  # which may name the inside of maps otherwise
        assert read_parquet(tmp_path / "merged").equals(read_parquet(tmp_path / "whole"))
    else:
        assert digest == whole.digest


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_a_null_beside_a_text_that_is_missing_is_no_reason_to_refuse_the_job(tmp_path: Path, source: str) -> None:
    if source == "jsonl":
        (tmp_path / "in.jsonl").write_text('{"text": "a", "x": 1}\n{}\n')
    else:
        pq.write_table(pa.table({"text": ["a", None], "x": [1, None]}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / f"in.{source}"))
    (batch,) = run(index_input(section, {"text": "text"}, ["x"], "zarr"), ["x"], tmp_path / "out.zarr", "zarr")
    assert [reject.row for reject in batch.rejects] == [1]


@pytest.mark.parametrize(
    ("one", "other"),
    [("parquet", "jsonl"), ("jsonl", "jsonl"), ("parquet", "parquet"), ("zarr", "parquet"), ("jsonl", "zarr")],
)
def test_outputs_with_every_type_are_compared(tmp_path: Path, one: str, other: str) -> None:
    columns = {
        name: case.values
        for name, case in CASES.items()
        if ("zarr" not in (one, other) or case.numbers is not None)
        and ("jsonl" not in (one, other) or case.texts is not None)
    }
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "in.parquet")
    outputs = []
    for number, (format, rows) in enumerate(((one, 1), (other, 3))):
        section = Input(url=str(tmp_path / "in.parquet"), partition_rows=rows)
        table = index_input(section, {"text": "text"}, [*columns], format)
        run(table, [*columns], tmp_path / f"{number}.{format}", format)
        outputs.append(open_output(str(tmp_path / f"{number}.{format}")))
    check_pair(*outputs)
    assert sum(len(left.positions) for left, _ in pair_parts(*outputs)) == ROWS


def test_a_value_that_differs_is_found_in_any_format(tmp_path: Path) -> None:
    outputs = []
    for number, value in enumerate((2**60, 2**60 + 1)):
        pq.write_table(pa.table({"text": ["a", "b"], "x": [[1], [value]]}), tmp_path / "in.parquet")
        table = index_input(Input(url=str(tmp_path / "in.parquet")), {"text": "text"}, ["x"], "parquet")
        format = ("parquet", "jsonl")[number]
        run(table, ["x"], tmp_path / f"{number}.{format}", format)
        outputs.append(open_output(str(tmp_path / f"{number}.{format}")))
    with pytest.raises(Incomparable, match="column 'x' of the input differs in row 1"):
        list(pair_parts(*outputs))


def test_zarr_arrays_have_names_of_their_axes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "x": pa.array([[1, 2]], pa.list_(pa.int8(), 2))}), tmp_path / "in.parquet")
    table = index_input(Input(url=str(tmp_path / "in.parquet")), {"text": "text"}, ["x"], "zarr")
    run(table, ["x"], tmp_path / "out.zarr", "zarr")
    metadata = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    names = {"x": ["row", "x_1"], "n": ["row"], "valid": ["row"]}
    assert {name: array["dimension_names"] for name, array in metadata.items()} == names


def test_outputs_open_by_their_folder_without_a_keyword(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "c"], "b": [1, 2, 3], "a": [4, 5, 6]}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"), partition_rows=1)
    for format in ("parquet", "zarr"):
        keep = ["b", "a"]
        run(index_input(section, {"text": "text"}, keep, format), keep, tmp_path / f"out.{format}", format)
    url = str(tmp_path / "out.parquet")
    found = dataset.dataset(url).to_table()
    assert found.column_names == ["row", "b", "a", "n"] and found.column("b").to_pylist() == [1, 3]
    assert pq.read_table(url).num_rows == 2


def test_the_lowest_and_the_highest_time_have_a_text(tmp_path: Path) -> None:
    lowest = pa.array([-(2**63), 2**63 - 1])
    columns = {str(own): lowest.cast(own) for own in (pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.duration("ns"))}
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"))
    run(index_input(section, {"text": "text"}, [*columns], "jsonl"), [*columns], tmp_path / "out.jsonl", "jsonl")
    assert [[*row.values()][1:4] for row in read_jsonl(tmp_path / "out.jsonl")] == [
        ["-290308-12-21T19:59:05.224192", "1677-09-21T00:12:43.145224192Z", "-PT9223372036.854775808S"],
        ["+294247-01-10T04:00:54.775807", "2262-04-11T23:47:16.854775807Z", "PT9223372036.854775807S"],
    ]
    (batch,) = run(
        index_input(section, {"text": "text"}, ["duration[ns]"], "zarr"), ["duration[ns]"], tmp_path / "o.zarr", "zarr"
    )
    assert [reject.row for reject in batch.rejects] == [0]


def test_text_that_is_no_json_costs_its_row_in_jsonl(tmp_path: Path) -> None:
    texts = pa.array(["{nope", '{"a": NaN}', '{\n"a": 1}', "", None])
    pq.write_table(
        pa.table({"text": list("abcde"), "x": pa.ExtensionArray.from_storage(JSON, texts)}), tmp_path / "in.parquet"
    )
    section = Input(url=str(tmp_path / "in.parquet"))
    (batch,) = run(index_input(section, {"text": "text"}, ["x"], "jsonl"), ["x"], tmp_path / "out.jsonl", "jsonl")
    assert [reject.row for reject in batch.rejects] == [0, 1, 3]
    assert [row["x"] for row in read_jsonl(tmp_path / "out.jsonl")] == [{"a": "1"}, None]


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"x": "int65"}, r"input\.types\.x: 'int65' is no type that is known; known are bool, int8, .*timestamp"),
        ({"x": "decimal128(39, 2)"}, r"input\.types\.x: .* has a precision that is not from 1 to 38"),
        ({"y": "int8"}, r"input\.types: .* has no column 'y'; it has text, x"),
        ({"text": "int8"}, r"input\.types\.text: the task reads this column as text, not as int8"),
        ({"X": "int8"}, "Did you mean 'x'"),
    ],
)
@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_declarations_that_mean_nothing_are_refused(
    tmp_path: Path, types: dict[str, str], message: str, source: str
) -> None:
    if source == "parquet":
        pq.write_table(pa.table({"text": ["a"], "x": ["1"]}), tmp_path / "in.parquet")
    else:
        (tmp_path / f"in.{source}").write_text({"csv": "text,x\na,1\n", "jsonl": '{"text": "a", "x": 1}\n'}[source])
    with pytest.raises(UsageError, match=message):
        index_input(Input(url=str(tmp_path / f"in.{source}"), types=types), {"text": "text"}, ["x"])


def test_tables_and_layouts_of_earlier_versions_are_read() -> None:
    """Their columns have one of five kinds, which are types by the same names."""
    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    assert {kind: decode_type(kind) for kind in kinds} == kinds
    assert decode_type("binary") == pa.large_binary()
    with pytest.raises(ValueError, match="is no type"):
        decode_type("complex64")
    for name, one in CASES.items():
        assert decode_type(encode_type(one.own)) == one.own, name


@pytest.mark.parametrize("output", ["parquet", "jsonl"])
def test_where_partitions_end_decides_no_row(tmp_path: Path, output: str) -> None:
    rows = [
        "{bad",
        '{"text": "a", "x": 1}',
        '{"text": "b", "x": 2.5}',
        '{"text": "c"}',
        '{"text": "d", "x": "s", "y": 1}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    found = set()
    for size in (1, 2, 5):
        section = Input(url=str(tmp_path / "in.jsonl"), partition_rows=size)
        table = index_input(section, {"text": "text"}, ["x", "y"], output)
        batches = [read_partition(partition_source(table, number)) for number in range(len(table.partitions))]
        rejects = [reject.row for batch in batches for reject in batch.rejects]
        values = pa.concat_tables([batch.table for batch in batches])
        found.add((str(table.columns), str(rejects), str(values.select(["x", "y"]).to_pylist())))
    assert len(found) == 1 and "[0]" in next(iter(found))[1]


def test_a_refused_value_that_utf8_cannot_carry_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "x": "\\ud800"}\n{"text": "b", "x": 1}\n')
    section = Input(url=str(tmp_path / "in.jsonl"), types={"x": "int8"})
    (batch,) = run(index_input(section, {"text": "text"}, ["x"]), ["x"], tmp_path / "out.parquet", "parquet")
    assert [reject.row for reject in batch.rejects] == [0]
    assert read_rejects(str(tmp_path / "out.parquet"), 0) == batch.rejects


@pytest.mark.parametrize(
    ("values", "name", "refused"),
    [
        (pa.array([0.5, 0.1, np.nan, None]), "float32", [1]),
        (pa.array([0.5, 70000, -0.0, 1e-9]), "float16", [1, 3]),
        (
            pa.array([Decimal("0.10"), Decimal("1234567890123456.78"), None, Decimal(10**15)], pa.decimal128(20, 2)),
            "float64",
            [1],
        ),
        (pa.array([2**53, 2**53 + 1, -1, None]), "float64", [1]),
        (pa.array([2048, 2049, 1, None]), "float16", [1]),
        (pa.array([1.0, 1.5, np.nan, -1.0]), "uint8", [1, 2, 3]),
        (pa.array([1000, 1, 0, None], pa.timestamp("us")), "timestamp[ms]", [1]),
    ],
)
def test_a_declared_number_must_be_the_same_number(
    tmp_path: Path, values: pa.Array, name: str, refused: list[int]
) -> None:
    pq.write_table(pa.table({"text": list("abcd"), "x": values}), tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"), types={"x": name})
    batch = read_partition(partition_source(index_input(section, {"text": "text"}, ["x"]), 0))
    assert [reject.row for reject in batch.rejects] == refused
    assert batch.table.column("x").null_count == values.null_count


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4),
    st.booleans(),
    st.integers(0, 60),
    st.text(max_size=1),
)
def test_objects_are_scanned_as_the_standard_library_reads_them(
    row: dict[str, Any], is_ascii: bool, place: int, spoilt: str
) -> None:
    text = json.dumps(row, ensure_ascii=is_ascii, indent=1 if place % 2 else None)
    found, texts = scan_object(text, row)
    assert found == row and {name: json.loads(own) for name, own in texts.items()} == row
    text = text[:place] + spoilt + text[place + 1 :]
    try:
        wanted = json.loads(text)
    except json.JSONDecodeError:
        wanted = None
    if isinstance(wanted, dict):
        assert scan_object(text, wanted)[0] == wanted
    else:
        with pytest.raises(json.JSONDecodeError):
            scan_object(text, row)
