"""Rows of jsonl, csv and text files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from daskinfer.errors import InputError
from daskinfer.spec.rows import ArrayColumn, InputFile, Partition, Segment, Want
from daskinfer.storage.filesystem import is_local, read_bytes
from daskinfer.storage.inputs.cutting import cut_files
from daskinfer.storage.inputs.kinds import (
    Convert,
    convert,
    convert_cell,
    convert_text,
    describe,
    infer_kind,
    parse_cell,
)
from daskinfer.storage.inputs.nested import fit_array, infer_array
from daskinfer.storage.inputs.records import BYTE_ORDER_MARK, RecordScanner, Spans, slice_records
from daskinfer.storage.inputs.seam import Columns, Harvest, Layout, MissingColumn
from daskinfer.storage.rows import EXCERPT_LENGTH, make_excerpt

LineFormatName = Literal["jsonl", "csv", "text"]
Make = Callable[[Mapping[str, Any]], Any]

# A request to a remote store is worth more bytes than a read from a disk.
_LOCAL_BLOCK = 1 << 20
_REMOTE_BLOCK = 8 << 20
_HEADER_BLOCK = 64 << 10


class LineFormat:
    """Files whose rows lie one after another, each ending with a newline.

    Parameters
    ----------
    name
        `jsonl`: an object a line. `csv`: comma-separated, quoted as RFC 4180 says, with a header. `text`: a string
        a line, in the column `text`. All are UTF-8; blank lines are not rows.
    """

    def __init__(self, name: LineFormatName) -> None:
        self._name = name
        self._quoted = name == "csv"
        self._fit: Convert = convert_cell if name == "csv" else convert

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return the column names of csv files, which must agree."""
        if self._name != "csv":
            return ()
        headers = {file.url: _parse_header(file)[0] for file in files if file.size}
        if not headers:
            return ()
        (first, header), *others = headers.items()
        for url, other in others:
            if other != header:
                raise InputError(
                    f"the headers of two csv files differ: {first} has {', '.join(header)}; {url} has "
                    f"{', '.join(other) or 'none'}",
                    hint="Files of one input need the same columns in the same order; narrow input.url.",
                )
        return header

    def cut(self, files: Sequence[InputFile], columns: Sequence[str], partition_rows: int) -> Iterator[Partition]:
        """Find the rows of all files by their line ends, and cut them."""
        return cut_files(self.scan, files, partition_rows)

    def scan(self, file: InputFile) -> Iterator[Spans]:
        """Find the rows of a file."""
        begin, line = self._find_body(file)
        scanner = RecordScanner(begin, line, self._quoted)
        block = _LOCAL_BLOCK if is_local(file.url) else _REMOTE_BLOCK
        for offset in range(begin, file.size, block):
            yield scanner.feed(read_bytes(file.url, offset, min(offset + block, file.size)))
        if scanner.open_quote_line is not None:
            raise InputError(
                f"{file.url}: a quoted field in the row at line {scanner.open_quote_line} is never closed",
                hint='Close it, or double the quotes that are meant as text ("").',
            )
        yield scanner.finish()

    def infer(
        self,
        files: Sequence[InputFile],
        segments: Sequence[Segment],
        header: tuple[str, ...],
        wants: Mapping[str, Want],
        keep: Sequence[str],
    ) -> Columns:
        """Return what the columns hold, from the rows of the segments."""
        if "image" in wants.values():
            raise InputError(
                f"a {self._name} file holds no images",
                hint="Read image files, binary columns of parquet, or uint8 arrays of parquet or Zarr.",
            )
        rows: list[Mapping[str, Any]] = []
        first_error = ""
        for segment in segments:
            file = files[segment.file]
            for record, line in self._records(file, segment):
                try:
                    rows.append(self._parse(record, header))
                except ValueError as error:
                    first_error = first_error or f"{file.url}, line {line}: {error}"
        if not rows:
            raise InputError(
                f"not one of the first {sum(segment.rows for segment in segments)} rows can be read as {self._name}; "
                f"the first is {first_error}",
                hint="Check input.format.",
            )
        there = list(dict.fromkeys(name for row in rows for name in row))
        for column in [*wants, *keep]:
            if column not in there:
                raise MissingColumn(column, files[segments[0].file].url, there)
        kinds = {column: "string" for column, want in wants.items() if want == "text"}
        for column in keep:
            if column not in kinds:
                kinds[column] = infer_kind((row.get(column) for row in rows), self._fit)
        arrays: dict[str, ArrayColumn] = {}
        for column, want in wants.items():
            if want == "array":
                try:
                    arrays[column] = infer_array(self._number(row[column]) for row in rows if column in row)
                except ValueError as error:
                    raise InputError(
                        f"column '{column}' of {files[segments[0].file].url}: {error}",
                        hint="Name a column of numbers, or of lists of numbers, under input.columns.",
                    ) from error
        return Columns(kinds, arrays)

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> Harvest:
        """Read the rows of a segment."""
        harvest = Harvest(
            columns={column: [] for column in layout.kinds}, arrays={column: [] for column in layout.arrays}
        )
        makers = [(harvest.columns[column], self._maker(column, layout)) for column in layout.kinds]
        makers += [(harvest.arrays[column], self._array_maker(column, layout)) for column in layout.arrays]
        for offset, (record, line) in enumerate(self._records(files[0], segment)):
            try:
                row = self._parse(record, layout.header)
                values = [make(row) for _, make in makers]
            except ValueError as error:
                harvest.refused.append((offset, line, str(error), _excerpt(record)))
                continue
            harvest.offsets.append(offset)
            harvest.lines.append(line)
            for (column, _), value in zip(makers, values, strict=True):
                column.append(value)
        return harvest

    def _records(self, file: InputFile, segment: Segment) -> list[tuple[bytes, int]]:
        data = read_bytes(file.url, segment.begin, segment.end)
        return slice_records(data, segment.begin, segment.line, self._quoted)

    def _find_body(self, file: InputFile) -> tuple[int, int]:
        """Return position and line number of what follows byte order mark and header."""
        if self._name == "csv" and file.size:
            return _parse_header(file)[1:]
        mark = len(BYTE_ORDER_MARK)
        marked = file.size >= mark and read_bytes(file.url, 0, mark) == BYTE_ORDER_MARK
        return (mark if marked else 0), 1

    def _parse(self, record: bytes, header: tuple[str, ...]) -> Mapping[str, Any]:
        text = _decode(record)
        if self._name == "text":
            return {"text": text}
        if self._name == "csv":
            fields = _split(text)
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields where the header has {len(header)}")
            return dict(zip(header, fields, strict=True))
        return _parse_object(text)

    def _maker(self, column: str, layout: Layout) -> Make:
        if column in layout.reads:
            return _make_required(column, convert_text)
        kind, fit = layout.kinds[column], self._fit

        def make(row: Mapping[str, Any]) -> Any:
            try:
                return fit(kind, row.get(column))
            except ValueError as error:
                raise ValueError(f"column '{column}': {error}") from error

        return make

    def _array_maker(self, column: str, layout: Layout) -> Make:
        array = layout.arrays[column]
        return _make_required(column, lambda value: fit_array(array, self._number(value)))

    def _number(self, value: Any) -> Any:
        return parse_cell(value) if self._name == "csv" else value


def _make_required(column: str, fit: Callable[[Any], Any]) -> Make:
    def make(row: Mapping[str, Any]) -> Any:
        if column not in row:
            raise ValueError(f"column '{column}' is missing")
        try:
            return fit(row[column])
        except ValueError as error:
            raise ValueError(f"column '{column}': {error}") from error

    return make


def _decode(record: bytes) -> str:
    try:
        return record.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8: byte 0x{record[error.start]:02x} at byte {error.start + 1}") from error


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, this is {describe(value)}")
    return value


def _split(text: str) -> list[str]:
    if '"' not in text:
        if "\r" in text:
            raise ValueError("a carriage return outside quotes")
        return text.split(",")
    # The limit of 128 KiB a field is the process's; long documents need more.
    csv.field_size_limit(sys.maxsize)
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise ValueError(f"not valid csv: {error}") from error


def _parse_header(file: InputFile) -> tuple[tuple[str, ...], int, int]:
    """Return names, and position and line number of what follows, of a csv header."""
    block = read_bytes(file.url, 0, min(file.size, _HEADER_BLOCK))
    begin = len(BYTE_ORDER_MARK) if block.startswith(BYTE_ORDER_MARK) else 0
    scanner = RecordScanner(begin, quoted=True)
    found = scanner.feed(block[begin:])
    if not len(found) and file.size <= _HEADER_BLOCK:
        found = scanner.finish()
    if not len(found):
        if file.size <= _HEADER_BLOCK:
            return (), file.size, 1
        raise InputError(
            f"{file.url}: no header ends within its first {_HEADER_BLOCK:,} bytes", hint="Check input.format."
        )
    first, last, line = found.bounds(0, 1)
    try:
        names = tuple(_split(_decode(block[first:last])))
    except ValueError as error:
        raise InputError(f"{file.url}, line {line}: the header is {error}", hint="Check input.format.") from error
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(
            f"{file.url}, line {line}: the header has {', '.join(sorted(map(repr, twice)))} more than once",
            hint="Give every column its own name.",
        )
    return names, last, line + block[first:last].count(b"\n")


def _excerpt(record: bytes) -> str:
    return make_excerpt(record[: 4 * EXCERPT_LENGTH + 4].decode(errors="replace"))
