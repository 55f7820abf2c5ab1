from __future__ import annotations

import csv
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.errors import InputError
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.inputs.text import line_scanner, lines
from daskinfer.storage.objects.filesystem import replace_bytes
from daskinfer.storage.objects.urls import join_url


def read_all(table: PartitionTable) -> list[RowBatch]:
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def index(url: Path | str, rows: int = 3, keep: tuple[str, ...] = (), **more: Any) -> PartitionTable:
    section = Input(url=str(url), partition_rows=rows, **more)
    return index_input(section, {section.columns.get("text", "text"): "text"}, keep)


def texts(batches: list[RowBatch], column: str = "text") -> list[str]:
    return [text for batch in batches for text in batch.values(column)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_partitions_cross_files_and_keep_the_order_of_paths(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"b{i}", "id": i} for i in range(5)])
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}", "id": i} for i in range(4)])
    table = index(tmp_path / "*.jsonl", keep=("id",))
    assert (table.rows, [partition.rows for partition in table.partitions]) == (9, [3, 3, 3])
    assert [len(partition.segments) for partition in table.partitions] == [1, 2, 1]
    assert [partition.first_row for partition in table.partitions] == [0, 3, 6]
    batches = read_all(table)
    assert texts(batches) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "b4"]
    assert batches[1].table.column("id").to_pylist() == [3, 0, 1]
    assert batches[1].lines.tolist() == [4, 1, 2]
    assert table.columns == {"text": "string", "id": "int64"}
    assert PartitionTable.model_validate_json(table.model_dump_json()) == table


def test_a_folder_stands_for_its_visible_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden").write_text("x")
    assert [Path(file.url).name for file in index(tmp_path).files] == ["a.jsonl"]


def test_bad_jsonl_rows_are_refused_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b'{"text": ' + b"[" * 100_000 + b"\n"
    path.write_bytes(
        b'{"text": "good", "id": 1}\n{"text": "torn\n\n[1, 2]\n{"id": 2}\n{"text": null, "id": 3}\n'
        b'{"text": 4, "id": 4}\n{"text": "\xff", "id": 5}\n' + deep + b'{"text": "\\ud800", "id": 6}\n'
        b'{"text": "word", "id": "seven"}\n{"text": "none"}\n{"text": "last", "id": 8}'
    )
    table = index(path, rows=1)
    assert table.rows == 12
    table = index(path, rows=100)
    table = table.model_copy(update={"columns": {"text": "string", "id": "int64"}})
    (batch,) = read_all(table)
    assert batch.values("text") == ["good", "none", "last"]
    assert batch.table.column("id").to_pylist() == [1, None, 8]
    assert batch.positions.tolist() == [0, 10, 11]
    assert batch.lines.tolist() == [1, 12, 13]
    found = {reject.line: reject.error for reject in batch.rejects}
    assert [reject.row for reject in batch.rejects] == list(range(1, 10))
    assert found[2].startswith("not valid JSON:")
    assert found[4] == "expected a JSON object, got a list ([1, 2])"
    assert found[5] == "column 'text' is missing"
    assert found[6] == "column 'text': is null"
    assert found[7] == "column 'text': expected a string, got the number 4"
    assert found[8] == "not valid UTF-8: byte 0xff at byte 11"
    assert "nested more than 500 deep" in found[9]
    assert "surrogate" in found[10]
    assert found[11] == "column 'id': expected int64, got a string (seven)"
    assert all(reject.source == str(path) and 0 < len(reject.excerpt) <= 200 for reject in batch.rejects)


def test_types_of_jsonl_come_from_all_rows(tmp_path: Path) -> None:
    first = [
        {"text": "a", "n": 1, "f": 1, "b": True, "s": "x", "o": {"k": [1]}, "nul": None, "gap": 1, "big": 2**63},
        {"text": "b", "n": 2, "f": 0.5, "b": False, "s": "y", "o": [2], "nul": None, "gap": None, "big": None},
    ]
    later = [{**first[0], "n": 2.5, "mix": 2**60}, {**first[0], "b": 1}, {"text": "c", "n": 3, "b": True, "mix": 0.5}]
    path = write_jsonl(tmp_path / "a.jsonl", first + later)
    keep = ("n", "f", "b", "s", "o", "nul", "gap", "big", "mix")
    types = ["float64", "float64", "json", "string", "json", "string", "int64", "uint64", "float64"]
    for rows in (1, 2, 5):
        table = index(path, rows=rows, keep=keep)
        assert table.columns == {"text": "string", **dict(zip(keep, types, strict=True))}
        found = pa.concat_tables([batch.table for batch in read_all(table)])
        assert found.num_rows == 5
    assert found.column("o").to_pylist() == ['{"k": [1]}', "[2]", *['{"k": [1]}'] * 2, None]
    assert found.column("b").to_pylist() == ["true", "false", "true", "1", "true"]
    assert found.column("big").to_pylist() == [2**63, None, 2**63, 2**63, None]
    assert found.column("mix").to_pylist() == [None, None, 2**60, None, 0.5]


def test_csv_with_mark_crlf_quotes_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbf"text",id,zip\r\n"two\r\nlines, ""quoted""",1,007\r\n\r\nplain,2,8\r\nshort\r\nlast 5" pipe,,9'
    )
    table = index(path, rows=2, keep=("id", "zip"))
    assert table.columns == {"text": "string", "id": "string", "zip": "string"}
    assert read_all(table)[1].values("id") == [""]
    table = index_input(Input(url=str(path), partition_rows=2, types={"id": "int8"}), {"text": "text"}, ("id", "zip"))
    first, second = read_all(table)
    assert first.values("text") == ['two\r\nlines, "quoted"', "plain"]
    assert first.values("zip") == ["007", "8"]
    assert first.lines.tolist() == [2, 5]
    assert first.table.column("id").to_pylist() == [1, 2]
    assert [(reject.line, reject.row, reject.error) for reject in second.rejects] == [
        (6, 2, "1 fields where the header has 3"),
    ]
    assert second.table.to_pylist() == [{"text": 'last 5" pipe', "id": None, "zip": "9"}]


def test_long_csv_fields_are_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"' + "long, " * 50_000 + '"\n')
    assert len(texts(read_all(index(path)))[0]) == 300_000


def test_csv_headers_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id\nx,1\n")
    (tmp_path / "b.csv").write_text("id,text\n1,x\n")
    with pytest.raises(InputError, match=r"a\.csv has text, id; .*b\.csv has id, text"):
        index(tmp_path / "*.csv")


def test_an_unclosed_quote_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\nx\n"open\nmore\n')
    with pytest.raises(InputError, match="line 3 is never closed"):
        index(tmp_path / "a.csv")


def test_text_files_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf first \r\n\n   \nsecond\n\xfe\xff\nthird")
    (batch,) = read_all(index(tmp_path / "a.txt", rows=10))
    assert batch.values("text") == [" first ", "second", "third"]
    assert [(reject.line, reject.excerpt) for reject in batch.rejects] == [(5, "\ufffd\ufffd")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 16),
)
def test_what_is_written_is_read_in_any_cut(tmp_path_factory: Any, values: list[str], rows: int, block: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write_jsonl(folder / "a.jsonl", [{"text": value} for value in values])
    with (folder / "a.csv").open("w", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["text"], *([value] for value in values)])
    for name in ("a.jsonl", "a.csv"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "_LOCAL_BLOCK", block)
            table = index(folder / name, rows=rows, encoding="utf-8")
        assert texts(read_all(table)) == [value for value in values if value.strip() and "\0" not in value]


def test_files_are_read_from_any_store(any_store: str) -> None:
    place = join_url(any_store, "in", "a.jsonl")
    replace_bytes(join_url(any_store, "in", "b.jsonl"), b'{"text": "c"}\n')
    replace_bytes(place, b'{"text": "a"}\n{"text": "b"}\n')
    table = index(join_url(any_store, "in", "*.jsonl"), rows=1)
    assert table.files[0].url.endswith("/in/a.jsonl") and table.files[0].etag
    assert texts(read_all(table)) == ["a", "b", "c"]
    replace_bytes(place, b'{"text": "a"}\n{"text": "x"}\n')
    with pytest.raises(InputError, match="it was written again"):
        read_all(table)


def test_parquet_is_read_from_any_store(any_store: str) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), stream, row_group_size=2)
    place = join_url(any_store, "a.parquet")
    replace_bytes(place, stream.getvalue())
    table = index(place, rows=2)
    assert texts(read_all(table)) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ["content", "size", "gone"])
def test_a_file_that_changed_is_not_read(tmp_path: Path, change: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    table = index(path)
    if change == "gone":
        path.unlink()
    elif change == "size":
        path.write_text('{"text": "a"}\n')
    else:
        before = path.stat()
        path.write_text(path.read_text().replace("b", "c"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InputError, match="changed while the job ran"):
        read_all(table)


@pytest.mark.parametrize(
    ("files", "url", "options", "message"),
    [
        ({}, "*.jsonl", {}, r"nothing matches .*looked for a glob"),
        ({"a.jsonl": ""}, "a.jsonl", {}, r"has no rows in 1 file, 0 bytes"),
        ({"a.jsonl": "\n\n", "b.jsonl": ""}, "*.jsonl", {}, r"has no rows in 2 files"),
        ({"a.csv": "text\n"}, "a.csv", {}, r"has no rows in 1 file"),
        ({"a.jsonl": "{}", "b.csv": "x"}, "*", {}, r"input\.format: auto cannot tell .*'\.csv'.*'\.jsonl'"),
        ({"a.dat": "{}"}, "a.dat", {}, r"input\.format"),
        ({"a.jsonl.gz": "x"}, "a.jsonl.gz", {}, r"a\.jsonl\.gz cannot be decompressed"),
        ({"a.jsonl.zip": "x"}, "a.jsonl.zip", {}, r"a\.jsonl\.zip is compressed or packed"),
        ({"a.parquet.gz": "x"}, "a.parquet.gz", {}, r"compressed parquet cannot be read"),
        (
            {"a.jsonl": '{"txt": "x"}'},
            "a.jsonl",
            {},
            r"input\.columns\.text: .*no column 'text'; it has txt\nDid you mean",
        ),
        ({"a.jsonl": '{"text": "x"}'}, "a.jsonl", {"keep": ("id",)}, r"output\.keep: .*no column 'id'; it has text"),
        ({"a.csv": "txt\nx\n"}, "a.csv", {}, r"input\.columns\.text: .*no column 'text'"),
        ({"a.csv": "text,text\nx,y\n"}, "a.csv", {}, r"the header of .* has 'text' more than once"),
        ({"a.txt": "x\n"}, "a.txt", {"columns": {"text": "body"}}, r"no column 'body'; it has text"),
        ({"a.jsonl": "nope\n[1]\n"}, "a.jsonl", {}, r"not a single row of 2 can be read as jsonl; .*line 1"),
        ({"a.parquet": "nope"}, "a.parquet", {}, r"a\.parquet cannot be read as parquet"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, files: dict[str, str], url: str, options: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        index(tmp_path / url, **options)
    assert caught.value.hint


def test_a_source_carries_only_its_own_files_and_pickles_small(tmp_path: Path) -> None:
    for number in range(200):
        write_jsonl(tmp_path / f"{number:03d}.jsonl", [{"text": "word " * 20, "id": i} for i in range(3)])
    table = index(tmp_path / "*.jsonl", rows=3)
    assert len(pickle.dumps(partition_source(table, 7))) < 2000
    batch = read_partition(partition_source(table, 7))
    copy = pickle.loads(pickle.dumps(batch))
    assert copy.table.equals(batch.table) and copy.positions.tolist() == [0, 1, 2]


def test_accepted_rows_can_be_refused_later(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": 1}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}, {"text": "c"}])
    (batch,) = read_all(index(tmp_path / "*.jsonl", rows=10))
    rest = batch.without({2: "too long"})
    assert rest.values("text") == ["a", "c"] and rest.positions.tolist() == [0, 3]
    assert [(reject.row, Path(reject.source).name, reject.line) for reject in rest.rejects] == [
        (1, "a.jsonl", 2),
        (2, "b.jsonl", 1),
    ]
    assert rest.rejects[1].excerpt == '{"text": "b"}'
    assert [reject.kind for reject in rest.rejects] == ["unreadable", "refused"]
    rest = rest.without({3: "SIGSEGV"}, {3: "killed"})
    assert [(reject.row, reject.kind) for reject in rest.rejects] == [(1, "unreadable"), (2, "refused"), (3, "killed")]
    assert batch.without({}) is batch


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
@LONGEST_RECORD.override(100)
def test_a_row_too_long_to_hold_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(line_scanner, "_BLOCK", 7)
    values = ["a", "b" * 30, "c" * 300, "d" * 99, "e"]
    lengths = {"jsonl": '{{"text": "{}"}}', "csv": '"{}"', "txt": "{}"}
    body = [lengths[suffix].format(value) for value in values]
    path = tmp_path / f"in.{suffix}"
    path.write_text("\n".join([*(["text"] if suffix == "csv" else []), *body]))
    (batch,) = read_all(index(path, rows=9))
    fits = [len(line) < 100 for line in body]
    assert batch.values("text") == [value for value, fit in zip(values, fits, strict=True) if fit]
    assert batch.positions.tolist() == [number for number, fit in enumerate(fits) if fit]
    for reject, line in zip(batch.rejects, [line for line in body if len(line) >= 100], strict=True):
        size = len(line) + (line != body[-1])
        assert f"has {size} bytes; a row may have at most" in reject.error
        assert line.startswith(reject.excerpt.rstrip("…"))


def test_a_file_without_an_end_of_a_row_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST_OPEN", 3 << 20)
    read: list[int] = []

    def read_text(file: object, begin: int, end: int) -> bytes:
        read.append(end)
        return b"x" * (end - begin)

    monkeypatch.setattr(lines, "read_text", read_text)
    monkeypatch.setattr("daskinfer.storage.inputs.partition_table.tell_encodings", lambda files, encoding: files)
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(50 << 20)
    with pytest.raises(InputError, match="a row of it does not end within 3,145,728 bytes"):
        index_input(Input(url=str(tmp_path / "a.jsonl")), {"text": "text"})
    assert max(read) <= 5 << 20
