"""Where rows begin and end in the bytes of jsonl, csv and text files, found block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_NEWLINE = ord("\n")
_QUOTE = ord('"')
_COMMA = ord(",")
_WHITESPACE = np.isin(np.arange(256), np.frombuffer(b" \t\r\n\x0b\x0c", np.uint8))


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


class RecordScanner:
    """Finds rows in consecutive blocks of a file, keeping nothing of the blocks.

    A row ends with its newline, for csv with the first one outside quotes; a quote opens only at the beginning of a
    field, as in Python's `csv`. Rows of whitespace alone are not rows.

    Parameters
    ----------
    offset
        Position of the first block.
    line
        Line number there, from 1.
    quoted
        Whether quotes protect newlines.
    """

    def __init__(self, offset: int, line: int = 1, quoted: bool = False) -> None:
        self._offset = offset
        self._line = line
        self._quoted = quoted
        self._begin = offset
        self._begin_line = line
        self._blank = True
        self._inside = False
        self._closing = False
        self._previous = _NEWLINE

    @property
    def open_quote_line(self) -> int | None:
        """First line of a row whose quoted field is still open, if there is one."""
        return self._begin_line if self._inside else None

    def feed(self, block: bytes) -> Spans:
        """Return the rows that end in the next block."""
        data = np.frombuffer(block, np.uint8)
        newlines: Offsets = np.flatnonzero(data == _NEWLINE).astype(np.int64)
        stops = newlines
        if self._quoted:
            stops = self._outside_quotes(data, newlines)
        ends = stops + (1 + self._offset)
        if len(ends):
            begins = np.concatenate([[self._begin], ends[:-1]])
            passed = np.searchsorted(newlines, stops) + 1
            next_lines = self._line + passed
            lines = np.concatenate([[self._begin_line], next_lines[:-1]])
            rows = self._drop_blank(Spans(begins, ends, lines), block, data)
            self._begin, self._begin_line = int(ends[-1]), int(next_lines[-1])
            self._blank = not block[self._begin - self._offset :].strip()
        else:
            rows = Spans(ends, ends, ends)
            self._blank = self._blank and not block.strip()
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
        suspects = np.flatnonzero(_WHITESPACE[data[starts]])
        keep = np.ones(len(rows), np.bool_)
        for index in suspects.tolist():
            if block[int(starts[index]) : int(rows.ends[index]) - self._offset].strip():
                continue
            keep[index] = index == 0 and not self._blank
        return Spans(rows.begins[keep], rows.ends[keep], rows.lines[keep])

    def _outside_quotes(self, data: NDArray[np.uint8], newlines: Offsets) -> Offsets:
        quotes = np.flatnonzero(data == _QUOTE)
        before = np.where(quotes > 0, data[quotes - 1], self._previous) if len(quotes) else quotes
        changes: list[int] = []
        inside = self._inside
        closed_at = -1 if self._closing else -2
        for position, previous in zip(quotes.tolist(), before.tolist(), strict=True):
            if inside:
                inside = False
                closed_at = position
            elif position == closed_at + 1 or previous in (_COMMA, _NEWLINE):
                inside = True
            else:
                continue
            changes.append(position)
        if len(data):
            self._previous = int(data[-1])
        self._closing = closed_at == len(data) - 1
        parity = np.searchsorted(np.array(changes, np.int64), newlines) & 1
        outside: Offsets = newlines[parity == int(self._inside)]
        self._inside = inside
        return outside


def slice_records(data: bytes, begin: int, line: int, quoted: bool) -> list[tuple[bytes, int]]:
    """Return every row of a segment's bytes with its line number.

    Parameters
    ----------
    data
        Bytes of the segment.
    begin
        Their position in the file.
    line
        Line number of the first row.
    quoted
        Whether quotes protect newlines.
    """
    scanner = RecordScanner(begin, line, quoted)
    found: list[tuple[bytes, int]] = []
    for spans in (scanner.feed(data), scanner.finish()):
        numbers = zip(spans.begins.tolist(), spans.ends.tolist(), spans.lines.tolist(), strict=True)
        found += [(data[first - begin : last - begin], number) for first, last, number in numbers]
    return found
