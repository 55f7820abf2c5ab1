"""What spreadsheets, pandas, Spark and others write: read as it is meant, or refused with the reason."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from daskinfer.errors import InputError, RecipeError
from daskinfer.spec.recipe.dialect import Csv
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from tests.storage.kept_columns import read_parquet, run


def keep(url: Path, columns: Sequence[str], out: Path, rows: int = 1000, **more: Any) -> tuple[pa.Table, list[str]]:
    """Copy columns to Parquet; return what is there, and why rows were refused."""
    table = index_input(Input(url=str(url), partition_rows=rows, **more), {"text": "text"}, columns)
    batches = run(table, columns, out, "parquet")
    return read_parquet(out), [reject.error for batch in batches for reject in batch.rejects]


def write_folder(folder: Path, **tables: dict[str, Any]) -> Path:
    folder.mkdir()
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def test_headers_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\r\nid;text;;\r\n1;x;;\r\n")
    found, _ = keep(tmp_path / "a.csv", ["id"], tmp_path / "out", csv=Csv(delimiter=";"))
    assert found.column("id").to_pylist() == ["1"]
    with pytest.raises(InputError, match=r"says in its first line that ';' delimits .*\n.*delimiter: \";\""):
        index_input(Input(url=str(tmp_path / "a.csv")), {"text": "text"})
    (tmp_path / "b.csv").write_text("id,text,id\n1,x,2\n")
    with pytest.raises(InputError, match="has 'id' more than once"):
        index_input(Input(url=str(tmp_path / "b.csv")), {"text": "text"}, ["id"])
    assert index_input(Input(url=str(tmp_path / "b.csv")), {"text": "text"}).rows == 1


def test_wide_headers_and_files_without_one(tmp_path: Path) -> None:
    wide = [f"column {number}" for number in range(9000)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(f"text,{','.join(wide)}\nx,{','.join('1' for _ in wide)}\n")
    (tmp_path / "in" / "b.csv").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "in" / "c.csv").write_bytes(b"\n\r\n")
    assert keep(tmp_path / "in", [wide[-1]], tmp_path / "out")[0].column(wide[-1]).to_pylist() == ["1"]


def test_what_follows_a_quoted_field_is_never_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,id\nx,"5" tall\ny,"a"b"c"\nz,5" disk\n')
    found, errors = keep(tmp_path / "a.csv", ["id"], tmp_path / "out")
    assert found.column("id").to_pylist() == ['5" disk'] and len(errors) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_a_key_that_comes_twice_costs_its_row(tmp_path: Path, rows: int) -> None:
    lines = ['{"text":"a","id":1,"id":2}', '{"text":"b","id":3,"z":1,"z":2}', '{"text":"c","text":"d","id":4}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found, errors = keep(tmp_path / "a.jsonl", ["id"], tmp_path / "out", rows)
    assert found.column("id").to_pylist() == [3]
    assert errors == [f"not usable JSON: the key '{key}' comes twice" for key in ("id", "text")]


def test_json_that_is_nested_too_deep_costs_its_row(tmp_path: Path) -> None:
    depths = range(880, 1010, 2)
    lines = [f'{{"text": "a", "x": {"[" * depth}NaN{"]" * depth}}}' for depth in depths]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "b", "x": "c"}']))
    found, errors = keep(tmp_path / "a.jsonl", ["x"], tmp_path / "out")
    assert found.num_rows == 1 and len(errors) == len(depths)


def test_declared_integers_are_decimal_and_zones_known(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,x\na,0x10\nb,16\n")
    found, errors = keep(tmp_path / "a.csv", ["x"], tmp_path / "out", types={"x": "int64"})
    assert found.column("x").to_pylist() == [16] and "0x10" in errors[0]
    section = Input(url=str(tmp_path / "a.csv"), types={"x": "timestamp[us, tz=Mars/Olympus]"})
    with pytest.raises(RecipeError, match=r"input\.types\.x: .*time zone that is not known"):
        index_input(section, {"text": "text"}, ["x"])


def test_names_in_another_unicode_form_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "e\u0301": 1}')
    with pytest.raises(InputError, match=r"in another Unicode form: 'e\\u0301'"):
        index_input(Input(url=str(tmp_path / "a.jsonl")), {"text": "text"}, ["\u00e9"])


@pytest.mark.parametrize(("suffix", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_damaged_member_is_never_dropped(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.txt{suffix}"
    one, other = pack(b"one\n" * 1000), pack(b"two\n")
    padding = b"" if suffix == ".bz2" else b"\0" * 8
    path.write_bytes(one + other + padding)
    assert index_input(Input(url=str(path)), {"text": "text"}).rows == 1001
    for damaged in (one + b"XX" + other[2:], one + other[:-5], one[:-5]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be decompressed"):
            index_input(Input(url=str(path)), {"text": "text"})


def test_utf32_without_a_mark_is_named(tmp_path: Path) -> None:
    for order in ("utf-32-le", "utf-32-be"):
        (tmp_path / "a.txt").write_bytes("hello\n".encode(order))
        with pytest.raises(InputError, match=f"input.encoding: {order}"):
            index_input(Input(url=str(tmp_path / "a.txt")), {"text": "text"})


@pytest.mark.parametrize("rows", [1, 250, 1000])
def test_categories_of_several_files_are_more_than_an_index_of_one_holds(tmp_path: Path, rows: int) -> None:
    own = pa.dictionary(pa.int8(), pa.string())
    words = [[f"{number} {file}" for number in range(3 if rows == 1 else 100)] for file in range(3)]
    columns = {
        f"f{file}": {"text": ["t"] * len(held), "id": pa.array(held).dictionary_encode().cast(own)}
        for file, held in enumerate(words)
    }
    found, _ = keep(write_folder(tmp_path / "in", **columns), ["id"], tmp_path / "out", rows)
    assert found.column("id").to_pylist() == [word for held in words for word in held]


def test_ordered_categories_keep_their_order(tmp_path: Path) -> None:
    levels = pa.DictionaryArray.from_arrays(pa.array([1, 0, 2], pa.int8()), ["low", "mid", "high"], ordered=True)
    folder = write_folder(tmp_path / "in", a={"text": list("abc"), "level": levels})
    keep(folder, ["level"], tmp_path / "out", 2)
    for part in sorted((tmp_path / "out").glob("part-*.parquet")):
        column = pq.read_table(part).column("level").chunk(0)
        assert column.type.ordered and column.dictionary.to_pylist() == ["low", "mid", "high"]


@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (pa.array(["x"]), pa.array([None], pa.float64()), ["x", None]),  # texts of which pandas has none
        (pa.array(["x"]), pa.array([], pa.int64()), ["x"]),
        (pa.array([[1]]), pa.array([None], pa.float64()), [[1], None]),
        (pa.array(np.array([0.5], np.float16)), pa.array([1.5], pa.float32()), [0.5, 1.5]),
        (pa.array([{"a": 1, "b": "x"}]), pa.array([{"b": "y", "a": 2}]), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ],
)
def test_files_that_differ_agree(tmp_path: Path, one: pa.Array, other: pa.Array, wanted: list[Any], rows: int) -> None:
    tables = {
        "a": {"text": ["t"] * len(one), "x": one},
        "b": {"x": other, "text": pa.array(["t"] * len(other), pa.string())},
    }
    found, errors = keep(write_folder(tmp_path / "in", **tables), ["x"], tmp_path / "out", rows)
    assert found.column("x").to_pylist() == wanted and not errors


def test_zones_that_are_utc_agree(tmp_path: Path) -> None:
    kinds = (("us", "UTC"), ("ns", "+00:00"), ("ms", "Etc/UTC"))
    columns = {unit: {"text": ["t"], "at": pa.array([0], pa.timestamp(unit, zone))} for unit, zone in kinds}
    found, _ = keep(write_folder(tmp_path / "in", **columns), ["at"], tmp_path / "out")
    assert found.column("at").type == pa.timestamp("ns", "UTC") and found.num_rows == 3


@pytest.mark.parametrize(
    ("one", "other", "advice"),
    [
        (pa.array([1]), pa.array([1.0, None]), 'x: "int64"'),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), r'x: "decimal128\(20, 0\)"'),
        (pa.array([[1]]), pa.array(["a"]), 'x: "json"'),
    ],
)
def test_what_is_advised_where_files_differ_works(tmp_path: Path, one: pa.Array, other: pa.Array, advice: str) -> None:
    tables = {name: {"text": ["t"] * len(own), "x": own} for name, own in (("a", one), ("b", other))}
    folder = write_folder(tmp_path / "in", **tables)
    with pytest.raises(InputError, match=advice):
        index_input(Input(url=str(folder)), {"text": "text"}, ["x"])
    name = advice.split('"')[1].replace("\\", "")
    found, _ = keep(folder, ["x"], tmp_path / "out", types={"x": name})
    assert found.num_rows >= 1


@pytest.mark.parametrize("nested", ["list", "struct"])
def test_far_times_of_96_bits_inside_others_cost_their_row(tmp_path: Path, nested: str) -> None:
    times = pa.array([-(10**16) * 2, 10**15, None], pa.timestamp("us"))
    column = (
        pa.ListArray.from_arrays([0, 1, 2, 3], times)
        if nested == "list"
        else pa.StructArray.from_arrays([times], ["at"])
    )
    pq.write_table(
        pa.table({"text": list("abc"), "x": column}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True
    )
    found, errors = keep(tmp_path / "a.parquet", ["x"], tmp_path / "out")
    assert found.column("row").to_pylist() == [1, 2]
    assert errors == ["column 'x': a time beyond the years 1678 to 2262 has no nanoseconds"]


def test_folders_name_columns(tmp_path: Path) -> None:
    for year, city in (("2020", "x%20y"), ("2021", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "in" / f"year={year}" / f"city={city}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": ["a"]}), folder / "part-0.parquet")
    url = tmp_path / "in" / "**" / "*.parquet"
    found, _ = keep(url, ["year", "city"], tmp_path / "out", 1, types={"year": "int64"})
    assert found.select(["year", "city"]).to_pylist() == [{"year": 2020, "city": "x y"}, {"year": 2021, "city": None}]
    with pytest.raises(InputError, match="'city' has 1 null, which a zarr output cannot hold"):
        index_input(Input(url=str(url)), {"text": "text"}, ["city"], "zarr")
    with pytest.raises(InputError, match=r"holds only folders\n.*in/\*\*/\*\.parquet"):
        index_input(Input(url=str(tmp_path / "in"), format="parquet"), {"text": "text"})


def test_zarr_arrays_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    group: Any = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    group.create_array("text", shape=(2,), dtype="string")[:] = np.array(["a", "b"], object)
    group.create_array("none", shape=(2, 0), chunks=(2, 1), dtype="i4")
    group.create_array("x", data=np.arange(2))
    section = Input(url=str(tmp_path / "in.zarr"))
    with pytest.raises(InputError, match=r"array 'none' of .* cannot be kept"):
        index_input(section, {"text": "text"}, ["none"])
    metadata = tmp_path / "in.zarr" / "x" / "zarr.json"
    for text in ("{", metadata.read_text().replace('"int64"', '"int63"')):
        metadata.write_text(text)
        with pytest.raises(InputError, match=r"array 'x' of .* cannot be read as zarr"):
            index_input(section, {"text": "text"}, ["x"])
    assert index_input(section, {"text": "text"}).rows == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_dictionaries_inside_others_are_read_across_row_groups(tmp_path: Path, rows: int) -> None:
    words = pa.array(list("xyxz")).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
    columns = {"s": pa.StructArray.from_arrays([words], ["a"]), "l": pa.ListArray.from_arrays([0, 1, 2, 3, 4], words)}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "a.parquet", row_group_size=2)
    found, _ = keep(tmp_path / "a.parquet", ["s", "l"], tmp_path / "out", rows)
    assert found.column("s").to_pylist() == [{"a": word} for word in "xyxz"]
    assert found.column("l").to_pylist() == [[word] for word in "xyxz"]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_numbers_that_floats_cannot_hold_cost_their_row(tmp_path: Path, format: str) -> None:
    values = ["1.5", "1e400", "9007199254740993", "9007199254740992", "-1e999", "2"]
    lines = ["x", *values] if format == "csv" else [f'{{"x": {value}}}' for value in [*values, "Infinity"]]
    path = tmp_path / f"a.{format}"
    path.write_text("\n".join(lines))
    table = index_input(Input(url=str(path)), {"x": "array"})
    batch = read_partition(partition_source(table, 0))
    assert [reject.row for reject in batch.rejects] == [1, 2, 4]
    assert list(batch.values("x"))[:3] == [1.5, 2.0**53, 2.0]


@pytest.mark.parametrize("inside", [False, True])
def test_a_type_that_arrow_does_not_know_is_refused_or_declared(tmp_path: Path, inside: bool) -> None:
    """Such as pandas' periods and geographic shapes, where nobody has registered them: values without their meaning."""
    marked = pa.field("item", pa.int64(), metadata={"ARROW:extension:name": "somebodys.period"})
    field = pa.field("when", pa.list_(marked)) if inside else marked.with_name("when")
    rows = pa.table(
        [pa.array(["a", "b"]), pa.array([[1], [2]] if inside else [1, 2], field.type)],
        schema=pa.schema([pa.field("text", pa.string()), field]),
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    section = Input(url=str(tmp_path / "in.parquet"))
    with pytest.raises(
        InputError, match=r"column 'when' of .* has the type somebodys\.period, which is not known here"
    ):
        index_input(section, {"text": "text"}, ("when",))
    index_input(section, {"text": "text"}, ())
    if not inside:
        declared = section.model_copy(update={"types": {"when": "int64"}})
        assert index_input(declared, {"text": "text"}, ("when",)).columns["when"] == "int64"
