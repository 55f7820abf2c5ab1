"""Rows of parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daskinfer.errors import InputError
from daskinfer.spec.rows import ArrayColumn, InputFile, Partition, Segment, Want
from daskinfer.storage.filesystem import open_filesystem
from daskinfer.storage.inputs.cutting import cut_files
from daskinfer.storage.inputs.kinds import ARROW_TYPES, check_picture, convert, convert_text
from daskinfer.storage.inputs.lists import common_shape, describe_type, to_numpy
from daskinfer.storage.inputs.seam import Columns, Harvest, Layout, MissingColumn
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

    def cut(self, files: Sequence[InputFile], columns: Sequence[str], partition_rows: int) -> Iterator[Partition]:
        """Count the rows of all files, and cut them."""
        return cut_files(self.scan, files, partition_rows)

    def scan(self, file: InputFile) -> Iterator[WholeFile]:
        """Count the rows of a file."""
        with _open(file) as parquet:
            yield WholeFile(parquet.metadata.num_rows)

    def infer(
        self,
        files: Sequence[InputFile],
        segments: Sequence[Segment],
        header: tuple[str, ...],
        wants: Mapping[str, Want],
        keep: Sequence[str],
    ) -> Columns:
        """Return what the columns hold, from the schemas and null counts of all files.

        The shape of an array whose type leaves it open is the most frequent one of the first partition.
        """
        found: dict[str, set[str]] = {column: set() for column in [*wants, *keep]}
        types: dict[str, list[pa.DataType]] = {column: [] for column in wants}
        for file in files:
            with _open(file) as parquet:
                schema = parquet.schema_arrow
                for column, seen in found.items():
                    if column not in schema.names:
                        raise MissingColumn(column, file.url, schema.names)
                    seen.add(_kind_of(parquet, column))
                for column, want in wants.items():
                    own = schema.field(column).type
                    _check_want(own, want, f"column '{column}' of {file.url}")
                    types[column].append(own)
        arrays: dict[str, ArrayColumn] = {}
        for column, own in types.items():
            if wants[column] == "array" or (wants[column] == "image" and not _agree_encoded(column, files, own)):
                arrays[column] = _infer_array(files, segments, column, own)
                if wants[column] == "image":
                    check_picture(arrays[column], f"column '{column}' of {files[0].url}")
        read = {"text": "string", "image": "binary"}
        kinds = {column: read[want] for column, want in wants.items() if column not in arrays}
        kinds |= {column: _merge(found[column]) for column in keep if column not in kinds}
        return Columns(kinds, arrays)

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> Harvest:
        """Read the rows of a segment, decoding only the row groups they lie in."""
        wanted = list(dict.fromkeys([*layout.kinds, *layout.arrays]))
        with _open(files[0]) as parquet:
            missing = [column for column in wanted if column not in parquet.schema_arrow.names]
            if missing:
                raise MissingColumn(missing[0], files[0].url, parquet.schema_arrow.names)
            table = _slice_rows(parquet, segment, wanted)
        columns: dict[str, pa.Array] = {}
        arrays: dict[str, NDArray[Any]] = {}
        errors: dict[int, str] = {}
        for column, kind in layout.kinds.items():
            values = table.column(column)
            if kind == "binary":
                columns[column] = _convert_encoded(values, column, errors)
            else:
                columns[column] = _convert(values, column, kind, column in layout.reads, errors)
        for column, array in layout.arrays.items():
            wrong: dict[int, str] = {}
            arrays[column] = to_numpy(table.column(column), array, wrong)
            errors = {offset: f"column '{column}': {why}" for offset, why in wrong.items()} | errors
        offsets = np.setdiff1d(np.arange(segment.rows), list(errors))
        accepted = pa.array(offsets, pa.int64())
        shown = table.select([column for column, kind in layout.kinds.items() if kind != "binary"])
        return Harvest(
            offsets=offsets.tolist(),
            lines=(offsets + (segment.begin + 1)).tolist(),
            columns={column: values.take(accepted) for column, values in columns.items()},
            arrays={column: values[offsets] if errors else values for column, values in arrays.items()},
            refused=[
                (offset, segment.begin + offset + 1, errors[offset], _excerpt(shown, offset))
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
    # Rows may be images: no more of them at once than are wanted.
    for batch in parquet.iter_batches(min(_BATCH_ROWS, segment.rows), row_groups=groups, columns=columns):
        low, high = max(segment.begin - position, 0), min(segment.end - position, batch.num_rows)
        if low < high:
            pieces.append(batch.slice(low, high - low))
        position += batch.num_rows
        if position >= segment.end:
            break
    return pa.Table.from_batches(pieces).select(columns)


def _check_want(own: pa.DataType, want: Want, where: str) -> None:
    fits, what = {
        "text": (_is_text(own), "strings"),
        "image": (_is_encoded(own) or describe_type(own) is not None, "images"),
        "array": (describe_type(own) is not None, "numbers"),
    }[want]
    if not fits:
        raise InputError(
            f"{where} holds {own}, not {what}", hint=f"Name another column under input.columns, or write it as {what}."
        )


def _agree_encoded(column: str, files: Sequence[InputFile], types: Sequence[pa.DataType]) -> bool:
    encoded = [_is_encoded(own) for own in types]
    if len(set(encoded)) > 1:
        yes, no = files[encoded.index(True)].url, files[encoded.index(False)].url
        raise InputError(
            f"column '{column}' holds encoded images in {yes} and arrays in {no}",
            hint="Files of one input need the same columns; narrow input.url.",
        )
    return encoded[0]


def _infer_array(
    files: Sequence[InputFile], segments: Sequence[Segment], column: str, types: Sequence[pa.DataType]
) -> ArrayColumn:
    described = [found for found in map(describe_type, types) if found is not None]
    dtype = np.result_type(*(found for found, _ in described))
    dims = described[segments[0].file][1]
    shape = tuple(dim for dim in dims if dim is not None)
    if len(shape) < len(dims):
        pieces = []
        for segment in segments:
            with _open(files[segment.file]) as parquet:
                pieces.append(common_shape(_slice_rows(parquet, segment, [column]).column(column)))
        known = [piece for piece in pieces if piece is not None]
        if not known:
            raise InputError(
                f"column '{column}' of {files[segments[0].file].url}: no row of the first partition is an array of "
                "numbers without nulls and with lists of equal lengths",
                hint="Name another column under input.columns.",
            )
        shape = known[0]
    return ArrayColumn(dtype=dtype.name, shape=shape)


def _convert_encoded(values: pa.ChunkedArray, column: str, errors: dict[int, str]) -> pa.Array:
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    whole = values.cast(ARROW_TYPES["binary"]).combine_chunks()
    for offset in np.flatnonzero(pc.fill_null(pc.binary_length(whole), 0).to_numpy(zero_copy_only=False) == 0).tolist():
        errors.setdefault(offset, f"column '{column}': {'is empty' if whole[offset].is_valid else 'is null'}")
    return whole


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
    return "binary" if _is_encoded(own) else "string"


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


def _is_encoded(own: pa.DataType) -> bool:
    """Say whether values are the bytes of files, or as `datasets` writes images: structs of bytes and path."""
    if pa.types.is_struct(own) and own.get_field_index("bytes") >= 0:
        own = own.field("bytes").type
    return bool(pa.types.is_binary(own) or pa.types.is_large_binary(own) or pa.types.is_binary_view(own))


def _is_text(own: pa.DataType) -> bool:
    if pa.types.is_dictionary(own):
        own = own.value_type
    return bool(pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own))


def _merge(kinds: set[str]) -> str:
    if "binary" in kinds:
        return "binary"
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
