"""Csv in any dialect, and texts that are none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from daskinfer.errors import InputError
from daskinfer.spec.recipe.dialect import Csv
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch

ROWS = [["1", 'a "quoted" text'], ["2", "two\nlines"], ["3", "a;b|c\td,e"], ["4", "plain"]]


def read(url: Path | str, options: dict[str, Any] | None = None, keep: tuple[str, ...] = (), **more: Any) -> RowBatch:
    section = Input(url=str(url), csv=Csv.model_validate(options or {}), **more)
    table = index_input(section, {"text": "text"}, keep)
    return read_partition(partition_source(table, 0))


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ":", " ", ","])
@pytest.mark.parametrize("quoting", [{}, {"quote": "'"}, {"escape": "\\"}, {"quote": None, "escape": "\\"}])
def test_any_dialect_comes_back(tmp_path: Path, delimiter: str, quoting: dict[str, str | None]) -> None:
    quote, escape = quoting.get("quote", '"'), quoting.get("escape")
    stream = io.StringIO(newline="")
    csv.writer(
        stream, delimiter=delimiter, quotechar=quote, escapechar=escape, doublequote=escape is None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE, lineterminator="\n",
    ).writerows([["id", "text"], *ROWS])  # fmt: skip
    (tmp_path / "a.csv").write_text(stream.getvalue())
    batch = read(tmp_path / "a.csv", {"delimiter": delimiter, **quoting}, keep=("id",))
    assert batch.values("text") == [text for _, text in ROWS]
    assert batch.values("id") == ["1", "2", "3", "4"]


def test_tabs_by_suffix_and_headers_by_list(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\tone, two\n\t\n2\ttwo\n")
    (tmp_path / "b.csv").write_text('3,"three, four"\n')
    batch = read(f"{tmp_path}/*", {"header": ["id", "text"]}, keep=("id",))
    assert batch.values("text") == ["one, two", "two", "three, four"]
    assert batch.values("id") == ["1", "2", "3"]
    assert [(reject.line, reject.error) for reject in batch.rejects] == [(2, "column 'text': is empty")]


def test_a_wrong_delimiter_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;"text"\n1;one\n')
    with pytest.raises(InputError, match=r"delimited by ';': set input\.csv\.delimiter"):
        read(tmp_path / "a.csv")
    with pytest.raises(
        InputError, match=r"not a single row of 1 can be read as csv; .*1 fields where the header has 2"
    ):
        (tmp_path / "a.csv").write_text("1;one\n")
        read(tmp_path / "a.csv", {"header": ["id", "text"]})


@pytest.mark.parametrize("rows", ["id,text\r1,one\r2,two\r", "id,text\r1,one" + "\r2,two" * 20_000])
def test_carriage_returns_alone_are_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(InputError, match=r"a\.csv"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ""}, {"delimiter": "ab"}, {"delimiter": "\n"}, {"delimiter": "§"}, {"quote": ","}, {"quote": "auto"},
     {"delimiter": '"'}, {"escape": '"'}, {"header": False}, {"header": []}, {"header": ["a", "a"]}, {"other": 1}],
)  # fmt: skip
def test_what_is_no_dialect_is_refused(options: dict[str, Any]) -> None:
    if options == {"quote": ","}:
        options = {"delimiter": ",", "quote": ","}
    with pytest.raises(ValidationError):
        Csv.model_validate(options)


def test_texts_that_are_none_are_quarantined_in_every_format(tmp_path: Path) -> None:
    values = ["one", "", " \u00a0 ", "a\0b", "two"]
    table = pa.table({"text": values})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": table["text"].dictionary_encode()}), tmp_path / "b.parquet")
    (tmp_path / "a.csv").write_text("".join(f'x,"{value}"\n' for value in ["text", *values]))
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one"}\n{"text": ""}\n{"text": " \\u00a0 "}\n{"text": "a\\u0000b"}\n{"text": "two"}\n'
    )
    for name in ("a.csv", "a.jsonl", "a.parquet", "b.parquet"):
        batch = read(tmp_path / name, encoding="utf-8" if name == "a.csv" else "auto")
        assert batch.values("text") == ["one", "two"]
        first = 2 if name == "a.csv" else 1
        assert [(reject.line - first, reject.error, reject.kind) for reject in batch.rejects] == [
            (1, "column 'text': is empty", "unreadable"),
            (2, "column 'text': holds only whitespace", "unreadable"),
            (3, "column 'text': holds a NUL character; is input.encoding right?", "unreadable"),
        ]
    (tmp_path / "a.txt").write_text("one\n\n \u00a0 \na\0b\ntwo\n")
    batch = read(tmp_path / "a.txt", encoding="utf-8")
    assert batch.values("text") == ["one", "two"]
    assert [reject.line for reject in batch.rejects] == [3, 4]  # a line of nothing is no row


def test_kept_texts_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,note\none,\n")
    assert read(tmp_path / "a.csv", keep=("note",)).values("note") == [""]
