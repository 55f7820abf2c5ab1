"""Every type of a kept column x where its nulls are x where partitions end x input format x output format, exactly.

What comes out is read with pyarrow, zarr and json, not with daskinfer's own decoders.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import dataset

from daskinfer.errors import Incomparable, UsageError
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.columns.json_text import scan_object
from daskinfer.storage.columns.types import JSON, decode_type, encode_type
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.merging import merge_part
from daskinfer.storage.outputs.pairing import check_pair, pair_parts
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.reading import open_output, read_part
from daskinfer.storage.outputs.sink import OutputLayout, Sink
from tests.storage.kept_columns import CASES, ROWS, SIZES, Case, make_part, read_jsonl, read_parquet, run, write

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
