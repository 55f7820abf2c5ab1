"""Where rows begin and end in the bytes of jsonl, csv and text files, found block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskinfer.knobs import LONGEST_RECORD
from daskinfer.storage.inputs.text.csv_dialect import Dialect

Offsets = NDArray[np.int64]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_BLOCK = 8 << 20
_BEGINNING = 4096
_NEWLINE = ord("\n")
_NEXT_LINE = "\x85".encode()
_WHITESPACE = b" \t\r\n\x0b\x0c"


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Consecutive rows of a file."""

    begins: Offsets
    """First byte of every row."""
    ends: Offsets
    """One past its last byte, the line end included."""
    lines: Offsets
    """Its line number, from 1."""

    def __len__(self) -> int:
        return len(self.begins)

    def bounds(self, first: int, last: int) -> tuple[int, int, int]:
        """Return begin, end and line number of the rows from `first` up to `last`."""
        return int(self.begins[first]), int(self.ends[last - 1]), int(self.lines[first])


class LongRecord(bytes):
    """The beginning of a row that is too long to be held in memory."""

    size: int
    """Bytes of the whole row."""


class LineEnds:
    r"""Finds out, block by block, whether a file has lines that end otherwise than with newlines, and none that does.

    Examples
    --------
    >>> ends = LineEnds()
    >>> ends.feed(b"one\rtwo\r")
    >>> ends.only_other(encoded=False)
    'carriage returns'
    """

    def __init__(self) -> None:
        self._newlines = self._returns = self._next_lines = False
        self._last = b""

    def feed(self, block: bytes) -> None:
        """Look at the next block."""
        if self._newlines or b"\n" in block:
            self._newlines = True
            return
        text = self._last + block
        self._returns |= b"\r" in text.rstrip(b"\r")
        self._next_lines |= _NEXT_LINE in text.removesuffix(_NEXT_LINE)
        self._last = block[-1:]

    def only_other(self, encoded: bool) -> str:
        """Return what ends lines instead, "" where newlines do; U+0085 only in files in other encodings than UTF-8."""
        if self._newlines:
            return ""
        return "carriage returns" if self._returns else "U+0085" if self._next_lines and encoded else ""


class RecordScanner:
    r"""Finds rows in consecutive blocks of a file, keeping nothing of the blocks.

    A row ends with its newline, for csv with the first one that is neither quoted nor escaped; a quote opens only at the
    beginning of a field, as in Python's `csv`. Rows of whitespace alone are not rows.

    Parameters
    ----------
    offset
        Position of the first block.
    line
        Line number there, from 1.
    dialect
        Of csv: what protects newlines.

    Examples
    --------
    >>> scanner = RecordScanner(0, dialect=Dialect())
    >>> scanner.feed(b'1,"two\nlines"\n\n3,').bounds(0, 1)
    (0, 14, 1)
    >>> scanner.finish().bounds(0, 1)
    (15, 17, 4)
    """

    def __init__(self, offset: int, line: int = 1, dialect: Dialect | None = None) -> None:
        self._offset = offset
        self._line = line
        self._dialect = dialect
        # Fields that are all empty are no blank line, though tabs delimit them.
        self._blanks = _WHITESPACE.replace(dialect.delimiter.encode(), b"") if dialect else _WHITESPACE
        self._is_blank = np.isin(np.arange(256), np.frombuffer(self._blanks, np.uint8))
        self._begin = offset
        self._begin_line = line
        self._blank = True
        self._inside = False
        # Positions in the next block: of the last quote that closed, and of the last character that was escaped.
        self._closed_at = self._escaped_at = -2
        self._previous = _NEWLINE

    @property
    def open_quote_line(self) -> int | None:
        """First line of a row whose quoted field is still open, if there is one."""
        return self._begin_line if self._inside else None

    @property
    def open_bytes(self) -> int:
        """How long the row is so far that no block has ended yet."""
        return self._offset - self._begin

    def feed(self, block: bytes) -> Spans:
        """Return the rows that end in the next block."""
        data = np.frombuffer(block, np.uint8)
        newlines: Offsets = np.flatnonzero(data == _NEWLINE).astype(np.int64)
        stops = newlines
        if self._dialect is not None and (self._dialect.quote or self._dialect.escape):
            stops = self._find_stops(self._dialect, data, newlines)
        ends = stops + (1 + self._offset)
        if len(ends):
            begins = np.concatenate([[self._begin], ends[:-1]])
            passed = np.searchsorted(newlines, stops) + 1
            next_lines = self._line + passed
            lines = np.concatenate([[self._begin_line], next_lines[:-1]])
            rows = self._drop_blank(Spans(begins, ends, lines), block, data)
            self._begin, self._begin_line = int(ends[-1]), int(next_lines[-1])
            self._blank = not block[self._begin - self._offset :].strip(self._blanks)
        else:
            rows = Spans(ends, ends, ends)
            self._blank = self._blank and not block.strip(self._blanks)
        self._offset += len(block)
        self._line += len(newlines)
        return rows

    def finish(self) -> Spans:
        """Return the last row where no newline ends it."""
        found = self._begin < self._offset and not self._blank

        def one(value: int) -> Offsets:
            return np.array([value] if found else [], np.int64)

        return Spans(one(self._begin), one(self._offset), one(self._begin_line))

    def _drop_blank(self, rows: Spans, block: bytes, data: NDArray[np.uint8]) -> Spans:
        starts = np.maximum(rows.begins - self._offset, 0)
        suspects = np.flatnonzero(self._is_blank[data[starts]])
        keep = np.ones(len(rows), np.bool_)
        for index in suspects.tolist():
            if block[int(starts[index]) : int(rows.ends[index]) - self._offset].strip(self._blanks):
                continue
            keep[index] = index == 0 and not self._blank
        return Spans(rows.begins[keep], rows.ends[keep], rows.lines[keep])

    def _find_stops(self, dialect: Dialect, data: NDArray[np.uint8], newlines: Offsets) -> Offsets:
        """Return the newlines that are neither quoted nor escaped."""
        quote, escape = (-1 if each is None else ord(each) for each in (dialect.quote, dialect.escape))
        openers = (ord(dialect.delimiter), _NEWLINE)
        marks = np.flatnonzero((data == quote) | (data == escape)) if escape >= 0 else np.flatnonzero(data == quote)
        before = np.where(marks > 0, data[marks - 1], self._previous) if len(marks) else marks
        changes: list[int] = []
        escaped: list[int] = [self._escaped_at]
        inside, closed_at = self._inside, self._closed_at
        for position, found, previous in zip(marks.tolist(), data[marks].tolist(), before.tolist(), strict=True):
            if position == escaped[-1]:
                continue
            if found == escape:
                if inside or position != closed_at + 1:
                    escaped.append(position + 1)
                continue
            if inside:
                inside = False
                closed_at = position
            elif position == closed_at + 1 or (previous in openers and position != escaped[-1] + 1):
                inside = True
            else:
                continue
            changes.append(position)
        if len(data):
            self._previous = int(data[-1])
        self._closed_at, self._escaped_at = closed_at - len(data), escaped[-1] - len(data)
        parity = np.searchsorted(np.array(changes, np.int64), newlines) & 1
        outside: Offsets = newlines[parity == int(self._inside)]
        self._inside = inside
        return outside[~np.isin(outside, escaped)] if escape >= 0 else outside


def slice_records(data: bytes, begin: int, line: int, dialect: Dialect | None = None) -> list[tuple[bytes, int]]:
    r"""Return every row of a segment's bytes with its line number.

    Parameters
    ----------
    data
        Bytes of the segment.
    begin
        Their position in the file.
    line
        Line number of the first row.
    dialect
        Of csv: what protects newlines.

    Examples
    --------
    >>> slice_records(b"one\n\ntwo\n", begin=100, line=7)
    [(b'one\n', 7), (b'two\n', 9)]
    """
    scanner = RecordScanner(begin, line, dialect)
    found: list[tuple[bytes, int]] = []
    for spans in (scanner.feed(data), scanner.finish()):
        numbers = zip(spans.begins.tolist(), spans.ends.tolist(), spans.lines.tolist(), strict=True)
        found += [(data[first - begin : last - begin], number) for first, last, number in numbers]
    return found


def read_records(
    read: Callable[[int, int], bytes], bounds: tuple[int, int], line: int, dialect: Dialect | None = None
) -> list[tuple[bytes, int]]:
    r"""Return every row of a segment with its line number, as `slice_records`; of rows that are too long, the beginning.

    Parameters
    ----------
    read
        Returns the bytes of the file from one position up to another.
    bounds
        Those of the segment.
    line, dialect
        As for `slice_records`.

    Examples
    --------
    >>> data = b"one\n\ntwo\n"
    >>> read_records(lambda begin, end: data[begin:end], bounds=(0, 4), line=1)
    [(b'one\n', 1)]
    """
    begin, end = bounds
    if end - begin <= LONGEST_RECORD.get():
        return slice_records(read(begin, end), begin, line, dialect)
    scanner = RecordScanner(begin, line, dialect)
    found: list[tuple[bytes, int]] = []
    for offset in (*range(begin, end, _BLOCK), None):
        spans = scanner.finish() if offset is None else scanner.feed(read(offset, min(offset + _BLOCK, end)))
        for first, last, number in zip(spans.begins.tolist(), spans.ends.tolist(), spans.lines.tolist(), strict=True):
            found.append((_read_record(read, first, last), number))
    return found


def _read_record(read: Callable[[int, int], bytes], begin: int, end: int) -> bytes:
    if end - begin <= LONGEST_RECORD.get():
        return read(begin, end)
    record = LongRecord(read(begin, min(end, begin + _BEGINNING)))
    record.size = end - begin
    return record
