from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.storage.inputs.text.csv_dialect import Dialect
from daskinfer.storage.inputs.text.line_scanner import RecordScanner, slice_records

LINES = st.text(alphabet=st.sampled_from(' \t\r\na,"é'), max_size=60)


def scan(data: bytes, cuts: list[int], dialect: Dialect | None = None) -> tuple[list[tuple[bytes, int]], RecordScanner]:
    scanner = RecordScanner(0, dialect=dialect)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = [scanner.feed(data[first:last]) for first, last in itertools.pairwise(edges)]
    found.append(scanner.finish())
    rows = []
    for spans in found:
        for index in range(len(spans)):
            begin, end, line = spans.bounds(index, index + 1)
            rows.append((data[begin:end], line))
    return rows, scanner


@settings(max_examples=150, deadline=None)
@given(LINES, st.lists(st.integers(0, 99), max_size=4))
def test_lines_are_python_s_lines_wherever_blocks_end(text: str, cuts: list[int]) -> None:
    data = text.encode()
    expected = [(line, number) for number, line in enumerate(io.BytesIO(data), 1) if line.strip()]
    assert scan(data, cuts, dialect=None)[0] == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.text(alphabet=st.sampled_from('a ,"\né'), max_size=6), min_size=2, max_size=3), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(0, 99), max_size=4),
)
def test_csv_rows_survive_any_block_border(rows: list[list[str]], ending: str, cuts: list[int]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator=ending).writerows(rows)
    data = stream.getvalue().encode()
    found, scanner = scan(data, cuts, dialect=Dialect())
    assert scanner.open_quote_line is None
    assert [next(csv.reader([record.decode()])) for record, _ in found] == rows
    starts = [data.index(record) for record, _ in found[:1]]
    assert [line for _, line in found[:1]] == [data[:start].count(b"\n") + 1 for start in starts]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from('ab,"\n'), max_size=30), st.lists(st.integers(0, 99), max_size=3))
def test_stray_quotes_mean_what_python_s_csv_takes_them_for(text: str, cuts: list[int]) -> None:
    found, scanner = scan(text.encode(), cuts, dialect=Dialect())
    if scanner.open_quote_line is None:
        expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        assert [next(csv.reader([record.decode()])) for record, _ in found] == expected


DIALECTS = [
    Dialect(";"),
    Dialect("\t", quote="'"),
    Dialect("|", quote=None),
    Dialect(",", escape="\\"),
    Dialect(";", quote=None, escape="\\"),
    Dialect(",", quote="'", escape="!"),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(DIALECTS), st.data())
def test_any_dialect_is_cut_as_python_s_csv_cuts_it(dialect: Dialect, data: st.DataObject) -> None:
    marks = sorted({"a", "\n", ",", dialect.delimiter, dialect.quote or "b", dialect.escape or "b"})
    text = data.draw(st.text(alphabet=st.sampled_from(marks), max_size=24)) + "\n"
    found, scanner = scan(text.encode(), data.draw(st.lists(st.integers(0, 99), max_size=3)), dialect)
    options: dict[str, Any] = {
        "delimiter": dialect.delimiter,
        "quotechar": dialect.quote,
        "escapechar": dialect.escape,
        "quoting": csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
    }
    if scanner.open_quote_line is None:
        expected = [row for row in csv.reader(io.StringIO(text, newline=""), **options) if row]
        assert len(found) == len(expected)
        for (record, _), row in zip(found, expected, strict=True):
            line = record.decode().removesuffix("\n")
            try:
                assert dialect.split(line) == row
            except ValueError:  # a quote that closes nothing: what Python makes of it is not what is written
                with pytest.raises(csv.Error):
                    next(csv.reader([line], strict=True, **options))


def test_an_open_quote_is_told_with_its_line() -> None:
    assert scan(b'a,b\nc,"d\ne\n', [], dialect=Dialect())[1].open_quote_line == 2


def test_a_segment_counts_lines_inside_quotes() -> None:
    data = b'1,"a\nb"\n\n2,c\n'
    assert slice_records(data, 100, 7, dialect=Dialect()) == [(b'1,"a\nb"\n', 7), (b"2,c\n", 10)]
