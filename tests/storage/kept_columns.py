"""Values of every Arrow type, what each is in JSON and in Zarr, and how tests copy them from an input to an output."""

from __future__ import annotations

import json
from collections.abc import Sequence
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

from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.columns.types import JSON
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.sink import OutputPart, Sink, Written

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
