"""Rows of jsonl, csv and text files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from daskinfer.errors import InputError
from daskinfer.ids import parse_json
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.recipe.dialect import Csv
from daskinfer.spec.rows import ArrayColumn, InputFile, Partition, Segment
from daskinfer.storage.columns.json_text import refuse_deep, scan_object
from daskinfer.storage.columns.types import JSON, is_text
from daskinfer.storage.columns.values import convert_column, convert_text, describe, parse_json_column
from daskinfer.storage.inputs.cutting import cut_files
from daskinfer.storage.inputs.interface import Columns, Layout, MissingColumn, ParsedRows, Request
from daskinfer.storage.inputs.kinds import parse_cell
from daskinfer.storage.inputs.row_batch import EXCERPT_LENGTH, make_excerpt
from daskinfer.storage.inputs.text.csv_dialect import Dialect, dialect_of
from daskinfer.storage.inputs.text.line_scanner import (
    BYTE_ORDER_MARK,
    LineEnds,
    LongRecord,
    RecordScanner,
    Spans,
    read_records,
)
from daskinfer.storage.inputs.text.nested import fit_array, infer_array
from daskinfer.storage.inputs.text.spool import read_text, size_of_text
from daskinfer.storage.inputs.text.survey import RowSurvey
from daskinfer.storage.objects.urls import is_local

LineFormatName = Literal["jsonl", "csv", "text"]
# What Excel takes for no row, but for the delimiter of all others.
_SEPARATOR = re.compile(rb"sep=(.)\r?\n", re.IGNORECASE)
Make = Callable[[Mapping[str, Any], Mapping[str, str]], Any]

# A request to a remote store is worth more bytes than a read from a disk.
_LOCAL_BLOCK = 1 << 20
_REMOTE_BLOCK = 8 << 20
_HEADER_BLOCK = 64 << 10
_LONGEST_HEADER = 16 << 20
# Longer rows than `LONGEST_RECORD` are quarantined one by one; this is no file of rows.
_LONGEST_OPEN = 512 << 20


class LineFormat:
    """Files whose rows lie one after another, each ending with a newline.

    Parameters
    ----------
    name
        `jsonl`: an object a line. `csv`: comma-separated, quoted as RFC 4180 says, with a header. `text`: a string
        a line, in the column `text`. Blank lines are not rows.
    options
        How csv is written.

    Examples
    --------
    >>> LineFormat("csv", Csv(header=("id", "text"))).read_header([])
    ('id', 'text')
    """

    def __init__(self, name: LineFormatName, options: Csv | None = None) -> None:
        self._name = name
        self._options = options or Csv()

    def _dialect(self, file: InputFile) -> Dialect | None:
        return dialect_of(self._options, file.url) if self._name == "csv" else None

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return the column names of csv files, which must agree."""
        if self._name != "csv":
            return ()
        if self._options.header is not True:
            return self._options.header
        headers = {file.url: self._parse_header(file)[0] for file in files if size_of_text(file)}
        headers = {url: names for url, names in headers.items() if names}
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
        scanner = RecordScanner(begin, line, self._dialect(file))
        block, size = _LOCAL_BLOCK if is_local(file.url) else _REMOTE_BLOCK, size_of_text(file)
        ends = LineEnds()
        for offset in range(begin, size, block):
            data = read_text(file, offset, min(offset + block, size))
            ends.feed(data)
            yield scanner.feed(data)
            if scanner.open_bytes > _LONGEST_OPEN:
                break  # no row at all: nothing more has to be read to know it
        if other := ends.only_other(bool(file.encoding)):
            raise InputError(
                f"{file.url}: its lines end with {other} alone, as those of old Macs and mainframes, so it would be one row",
                hint="Write it with newlines.",
            )
        if scanner.open_quote_line is not None:
            raise InputError(
                f"{file.url}: a quoted field in the row at line {scanner.open_quote_line} is never closed",
                hint='Close it, or double the quotes that are meant as text ("").',
            )
        if scanner.open_bytes > _LONGEST_OPEN:
            raise InputError(
                f"{file.url}: a row of it does not end within {_LONGEST_OPEN:,} bytes",
                hint="Check input.format and how its lines end.",
            )
        yield scanner.finish()

    def infer(
        self, files: Sequence[InputFile], partitions: Sequence[Partition], header: tuple[str, ...], request: Request
    ) -> Columns:
        """Return what the columns hold: csv and text hold text; types in jsonl come from all rows.

        To jsonl the text of its values is copied. What is read as an array is told by the first rows.
        """
        wants, is_json = request.wants, self._name == "jsonl"
        if twice := sorted(column for column in request.columns if header.count(column) > 1):
            raise InputError(
                f"the header of {files[0].url} has {', '.join(map(repr, twice))} more than once, so it cannot be told "
                "which column is meant",
                hint="Give every column that is read or kept its own name.",
            )
        if "image" in wants.values():
            raise InputError(
                f"a {self._name} file holds no images",
                hint="Read image files, binary columns of parquet, or uint8 arrays of parquet or Zarr.",
            )
        plain = JSON if is_json and request.output == "jsonl" else pa.string()
        types = {column: pa.string() for column, want in wants.items() if want == "text"}
        types |= dict.fromkeys(request.keep, plain)
        types |= {column: own for column, own in request.declared.items() if column in types}
        untold = [column for column in request.keep if column not in request.declared]
        typed = [column for column in untold if wants.get(column) != "text"] if is_json and plain != JSON else []
        arrays = [column for column, want in wants.items() if want == "array"]
        reads = tuple(column for column, want in wants.items() if want == "text")
        survey = self._survey(files, partitions, header, RowSurvey(request.columns, typed, arrays, reads))
        first = files[partitions[0].segments[0].file].url
        if survey.missing:
            raise MissingColumn(survey.missing[0], first, list(survey.names))
        found: dict[str, ArrayColumn] = {}
        for column in arrays:
            try:
                found[column] = infer_array(map(self._number, survey.values(column)))
            except ValueError as error:
                raise InputError(
                    f"column '{column}' of {first}: {error}",
                    hint="Name a column of numbers, or of lists of numbers, under input.columns.",
                ) from error
        return Columns(types | survey.types(), found, survey.nulls())

    def _survey(
        self,
        files: Sequence[InputFile],
        partitions: Sequence[Partition],
        header: tuple[str, ...],
        survey: RowSurvey,
    ) -> RowSurvey:
        first_error = ""
        for segment in (segment for partition in partitions for segment in partition.segments):
            file = files[segment.file]
            for record, line in self._records(file, segment):
                try:
                    row, texts = self._parse(file, record, header, survey.typed)
                except ValueError as error:
                    first_error = first_error or f"{file.url}, line {line}: {error}"
                else:
                    survey.add(row, texts, not all(_is_text(row.get(column)) for column in survey.reads))
                if survey.is_settled:
                    return survey
        if not survey.rows:
            rows = sum(partition.rows for partition in partitions)
            raise InputError(
                f"not a single row of {rows:,} can be read as {self._name}; the first is {first_error}",
                hint="Check input.format and input.encoding; of csv, input.csv.",
            )
        return survey

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> ParsedRows:
        """Read the rows of a segment."""
        harvest = ParsedRows(arrays={column: [] for column in layout.arrays})
        columns: dict[str, list[Any]] = {column: [] for column in layout.types}
        makers = [(columns[column], self._maker(column, layout)) for column in layout.types]
        makers += [(harvest.arrays[column], self._array_maker(column, layout)) for column in layout.arrays]
        records = self._records(files[0], segment)
        wanted = {*layout.types, *layout.arrays}
        for offset, (record, line) in enumerate(records):
            try:
                row, texts = self._parse(files[0], record, layout.header, wanted)
                values = [make(row, texts) for _, make in makers]
            except ValueError as error:
                harvest.refused.append((offset, line, str(error), _excerpt(record)))
                continue
            harvest.offsets.append(offset)
            harvest.lines.append(line)
            for (held, _), value in zip(makers, values, strict=True):
                held.append(value)
        errors: dict[int, str] = {}
        for column, target in layout.types.items():
            harvest.columns[column] = self._convert(columns[column], target, column, errors)
        refused = {index: (harvest.offsets[index], harvest.lines[index], why) for index, why in errors.items()}
        harvest.drop(
            {index: (offset, line, why, _excerpt(records[offset][0])) for index, (offset, line, why) in refused.items()}
        )
        return harvest

    def _convert(self, values: list[Any], target: pa.DataType, column: str, errors: dict[int, str]) -> pa.Array:
        """Return kept values in their type: fields of csv and lines of text as they are, of jsonl their JSON texts."""
        if self._name == "jsonl":
            return parse_json_column(values, target, column, errors)
        if not is_text(target):
            values = [value or None for value in values]
        return convert_column(pa.array(values, pa.string()), target, column, errors)

    def _records(self, file: InputFile, segment: Segment) -> list[tuple[bytes, int]]:
        bounds = (segment.begin, segment.end)
        return read_records(partial(read_text, file), bounds, segment.line, self._dialect(file))

    def _find_body(self, file: InputFile) -> tuple[int, int]:
        """Return position and line number of what follows byte order mark and header."""
        size = size_of_text(file)
        if self._name == "csv" and self._options.header is True and size:
            return self._parse_header(file)[1:]
        mark = len(BYTE_ORDER_MARK)
        marked = size >= mark and read_text(file, 0, mark) == BYTE_ORDER_MARK
        return (mark if marked else 0), 1

    def _parse_header(self, file: InputFile) -> tuple[tuple[str, ...], int, int]:
        """Return names, and position and line number of what follows, of a csv header."""
        dialect = dialect_of(self._options, file.url)
        record, last, line = _read_first(file, dialect, 0, 1)
        if (told := _SEPARATOR.fullmatch(record.removeprefix(BYTE_ORDER_MARK))) is not None:
            _check_separator(file, told[1].decode(), dialect)
            record, last, line = _read_first(file, dialect, last, line + 1)
        if not record:
            return (), last, 1
        try:
            names = tuple(dialect.split(_decode(record, file.encoding)))
        except ValueError as error:
            raise InputError(
                f"{file.url}, line {line}: the header is {error}",
                hint="Check input.format, input.csv and how its lines end.",
            ) from error
        return names, last, line + record.count(b"\n")

    def _parse(
        self, file: InputFile, record: bytes, header: tuple[str, ...], kept: Collection[str]
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return a row and, of jsonl, the JSON texts of some of its values."""
        text = _decode(record, file.encoding)
        if self._name == "text":
            return {"text": text}, {}
        if self._name == "csv":
            fields = dialect_of(self._options, file.url).split(text)
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields where the header has {len(header)}")
            return dict(zip(header, fields, strict=True)), {}
        return _parse_object(text, kept)

    def _maker(self, column: str, layout: Layout) -> Make:
        is_json = self._name == "jsonl"
        if column not in layout.reads:
            return (lambda row, texts: texts.get(column)) if is_json else (lambda row, texts: row[column])
        check = _make_required(column, convert_text)

        def make(row: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
            value = check(row)
            return texts[column] if is_json else value

        return make

    def _array_maker(self, column: str, layout: Layout) -> Make:
        array = layout.arrays[column]
        fit = _make_required(column, lambda value: fit_array(array, self._number(value)))

        def make(row: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
            found = fit(row)
            # JSON's reader takes 1e400 for infinity, which is written otherwise.
            if column in texts and np.isinf(found).any() and "Infinity" not in texts[column]:
                raise ValueError(f"column '{column}': a number is larger than fits {array.dtype}")
            return found

        return make

    def _number(self, value: Any) -> Any:
        return parse_cell(value) if self._name == "csv" else value


def _read_first(file: InputFile, dialect: Dialect, begin: int, line: int) -> tuple[bytes, int, int]:
    """Return the first record from a position on, where it ends, and its line; no bytes where there is none."""
    size = size_of_text(file)
    mark = len(BYTE_ORDER_MARK)
    if not begin and size >= mark and read_text(file, 0, mark) == BYTE_ORDER_MARK:
        begin = mark
    length = _HEADER_BLOCK
    while True:
        block = read_text(file, begin, min(size, begin + length))
        scanner = RecordScanner(begin, line, dialect)
        found = scanner.feed(block)
        if not len(found) and begin + len(block) == size:
            found = scanner.finish()
            if not len(found):
                return b"", size, line
        if len(found):
            first, last, line = found.bounds(0, 1)
            return block[first - begin : last - begin], last, line
        if length >= _LONGEST_HEADER:
            raise InputError(
                f"{file.url}: no header ends within its first {_LONGEST_HEADER:,} bytes",
                hint="Check input.format and input.csv.",
            )
        length *= 4


def _check_separator(file: InputFile, told: str, dialect: Dialect) -> None:
    """Refuse a delimiter that contradicts what the file says in the line that Excel reads."""
    if told != dialect.delimiter:
        raise InputError(
            f"{file.url} says in its first line that {told!r} delimits its fields, and {dialect.delimiter!r} is expected",
            hint=f"Set input.csv: {{delimiter: {json.dumps(told)}}}.",
        )


def _make_required(column: str, fit: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], Any]:
    def make(row: Mapping[str, Any]) -> Any:
        if column not in row:
            raise ValueError(f"column '{column}' is missing")
        try:
            return fit(row[column])
        except ValueError as error:
            raise ValueError(f"column '{column}': {error}") from error

    return make


def _decode(record: bytes, encoding: str = "") -> str:
    if isinstance(record, LongRecord):
        raise ValueError(f"has {record.size:,} bytes; a row may have at most {LONGEST_RECORD.get():,}")
    try:
        return record.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        if encoding:
            raise ValueError(f"not valid {encoding}") from error
        raise ValueError(f"not valid UTF-8: byte 0x{record[error.start]:02x} at byte {error.start + 1}") from error


def _parse_object(text: str, kept: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        refuse_deep(text)
        if kept and text.lstrip()[:1] == "{":
            return scan_object(text, kept)
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {describe(value)}")
    return value, {}


def _excerpt(record: bytes) -> str:
    return make_excerpt(record[: 4 * EXCERPT_LENGTH + 4].decode(errors="replace"))


def _is_text(value: Any) -> bool:
    """Whether a value is a text that a task can read."""
    return isinstance(value, str) and bool(value) and not value.isspace()
