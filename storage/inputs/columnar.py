"""Rows of parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskinfer.errors import InputError
from daskinfer.spec.rows import InputFile, Segment
from daskinfer.storage.filesystem import open_filesystem
from daskinfer.storage.inputs.kinds import ARROW_TYPES, convert, convert_text
from daskinfer.storage.inputs.seam import Harvest, Layout, MissingColumn
from daskinfer.storage.rows import make_excerpt

_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True)
class WholeFile:
    """All rows of a parquet file, counted by its footer."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def bounds(self, first: int, last: int) -> tuple[int, int, int]:
        """Return row numbers; parquet has no lines."""
        return first, last, 0


class ParquetFormat:
    """Parquet files, found by their footers and read by row group."""

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return nothing: the footers know."""
        return ()

    def scan(self, file: InputFile) -> Iterator[WholeFile]:
        """Count the rows of a file."""
        with _open(file) as parquet:
            yield WholeFile(parquet.metadata.num_rows)

    def infer(
        self,
        files: Sequence[InputFile],
        segments: Sequence[Segment],
        header: tuple[str, ...],
        reads: Sequence[str],
        keep: Sequence[str],
    ) -> dict[str, str]:
        """Return the kind of every wanted column, from the schemas and null counts of all files."""
        found: dict[str, set[str]] = {column: set() for column in [*reads, *keep]}
        for file in files:
            with _open(file) as parquet:
                schema = parquet.schema_arrow
                for column, seen in found.items():
                    if column not in schema.names:
                        raise MissingColumn(column, file.url, schema.names)
                    if column in reads and not _is_text(schema.field(column).type):
                        raise InputError(
                            f"column '{column}' of {file.url} holds {schema.field(column).type}, not strings",
                            hint="Name another column under input.columns, or write it as strings.",
                        )
                    seen.add(_kind_of(parquet, column))
        return {column: _merge(kinds) for column, kinds in found.items()}

    def read(self, file: InputFile, segment: Segment, layout: Layout) -> Harvest:
        """Read the rows of a segment, decoding only the row groups they lie in."""
        with _open(file) as parquet:
            missing = [column for column in layout.kinds if column not in parquet.schema_arrow.names]
            if missing:
                raise MissingColumn(missing[0], file.url, parquet.schema_arrow.names)
            table = _slice_rows(parquet, segment, list(layout.kinds))
        columns: dict[str, pa.Array] = {}
        errors: dict[int, str] = {}
        for column, kind in layout.kinds.items():
            columns[column] = _convert(table.column(column), column, kind, column in layout.reads, errors)
        offsets = np.setdiff1d(np.arange(segment.rows), list(errors))
        accepted = pa.array(offsets, pa.int64())
        return Harvest(
            offsets=offsets.tolist(),
            lines=(offsets + (segment.begin + 1)).tolist(),
            columns={column: values.take(accepted) for column, values in columns.items()},
            refused=[
                (offset, segment.begin + offset + 1, errors[offset], _excerpt(table, offset))
                for offset in sorted(errors)
            ],
        )


@contextmanager
def _open(file: InputFile) -> Iterator[pq.ParquetFile]:
    filesystem, path = open_filesystem(file.url)
    with filesystem.open(path, "rb") as stream:
        try:
            yield pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file.url} cannot be read as parquet: {error}", hint="Check input.format and the file."
            ) from error


def _slice_rows(parquet: pq.ParquetFile, segment: Segment, columns: list[str]) -> pa.Table:
    groups: list[int] = []
    start = first = 0
    for number in range(parquet.num_row_groups):
        stop = start + parquet.metadata.row_group(number).num_rows
        if start < segment.end and stop > segment.begin:
            first = start if not groups else first
            groups.append(number)
        start = stop
    pieces, position = [], first
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        low, high = max(segment.begin - position, 0), min(segment.end - position, batch.num_rows)
        if low < high:
            pieces.append(batch.slice(low, high - low))
        position += batch.num_rows
        if position >= segment.end:
            break
    return pa.Table.from_batches(pieces).select(columns)


def _convert(values: pa.ChunkedArray, column: str, kind: str, required: bool, errors: dict[int, str]) -> pa.Array:
    """Return the column in its kind; rows that do not fit are noted in `errors` and null."""
    simple = _convert_whole(values, kind, required)
    if simple is not None:
        return simple
    converted: list[Any] = []
    for offset, scalar in enumerate(values):
        result = None
        try:
            value = scalar.as_py()
            result = convert_text(value) if required else convert(kind, value)
        except ValueError as error:
            reason = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            errors.setdefault(offset, f"column '{column}': {reason}")
        converted.append(result)
    return pa.array(converted, ARROW_TYPES[kind])


def _convert_whole(values: pa.ChunkedArray, kind: str, required: bool) -> pa.Array | None:
    """Return the column in its kind where no row of it can fail, which is nearly always and fast."""
    own, nulls = values.type, values.null_count > 0
    fits = {
        "string": _is_text(own) and not (required and nulls),
        "int64": pa.types.is_integer(own) and own != pa.uint64() and not nulls,
        "float64": pa.types.is_floating(own),
        "bool": pa.types.is_boolean(own) and not nulls,
    }
    if not fits[kind]:
        return None
    try:
        array = values.cast(ARROW_TYPES[kind]).combine_chunks()
        array.validate(full=True)
    except pa.ArrowInvalid:
        return None
    if not array.null_count:
        return array
    return array.fill_null("" if kind == "string" else float("nan"))


def _kind_of(parquet: pq.ParquetFile, column: str) -> str:
    own = parquet.schema_arrow.field(column).type
    nulls = _may_hold_nulls(parquet, column)
    if pa.types.is_floating(own):
        return "float64"
    if pa.types.is_integer(own) and own != pa.uint64():
        return "float64" if nulls else "int64"
    if pa.types.is_boolean(own) and not nulls:
        return "bool"
    return "string"


def _may_hold_nulls(parquet: pq.ParquetFile, column: str) -> bool:
    names = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    if column not in names:
        return True
    index = names.index(column)
    for number in range(parquet.num_row_groups):
        statistics = parquet.metadata.row_group(number).column(index).statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count > 0:
            return True
    return False


def _is_text(own: pa.DataType) -> bool:
    if pa.types.is_dictionary(own):
        own = own.value_type
    return bool(pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own))


def _merge(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float64" if kinds == {"int64", "float64"} else "string"


def _excerpt(table: pa.Table, offset: int) -> str:
    row: dict[str, Any] = {}
    for column in table.column_names:
        try:
            row[column] = table.column(column)[offset].as_py()
        except UnicodeDecodeError:
            row[column] = table.column(column)[offset].as_buffer().to_pybytes().decode(errors="replace")
    return make_excerpt(json.dumps(row, ensure_ascii=False, default=str))
