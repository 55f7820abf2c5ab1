"""Every type by every pattern of nulls, size of partition, input and output format: what comes in comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from daskinfer.errors import InputError
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
from tests.storage.kept_columns import (
    CASES,
    FAR,
    KEPT_AS,
    NULLS,
    ROWS,
    SIZES,
    TOP,
    column_of,
    decode,
    expect_json,
    read_jsonl,
    read_parquet,
    read_zarr,
    run,
    ticks,
    with_nulls,
)


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
