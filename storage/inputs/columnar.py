"""Rows of parquet files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
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
from daskinfer.storage.columns.json_text import describe_row
from daskinfer.storage.columns.types import (
    describe_type,
    find_extension,
    is_binary,
    is_text,
    lay_plain,
    parse_declared,
    unify,
    widen_indices,
)
from daskinfer.storage.columns.values import can_convert, convert_column
from daskinfer.storage.inputs.cutting import cut_files
from daskinfer.storage.inputs.hive import folder_columns
from daskinfer.storage.inputs.int96 import correct_int96, is_int96
from daskinfer.storage.inputs.interface import Columns, Layout, MissingColumn, ParsedRows, Request
from daskinfer.storage.inputs.kinds import check_picture
from daskinfer.storage.inputs.lists import count_shapes, describe_array, to_numpy
from daskinfer.storage.inputs.parquet_bounds import (
    check_lengths,
    find_coded,
    refuse_footer,
    refuse_large_rows,
    rows_at_once,
)
from daskinfer.storage.inputs.row_batch import make_excerpt
from daskinfer.storage.inputs.text.survey import ARRAY_ROWS
from daskinfer.storage.objects.filesystem import open_filesystem
from daskinfer.units import format_amount


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
        self, files: Sequence[InputFile], partitions: Sequence[Partition], header: tuple[str, ...], request: Request
    ) -> Columns:
        """Return what the columns hold, from the schemas and null counts of all files.

        The shape of an array whose type leaves it open is the most frequent one of the first rows.
        """
        found: dict[str, list[pa.DataType]] = {column: [] for column in request.columns}
        nulls = dict.fromkeys(request.columns, 0)
        empty: dict[str, list[bool]] = {column: [] for column in request.columns}
        groups = 0
        for file in files:
            with _open(file) as parquet:
                groups += parquet.num_row_groups
                refuse_large_rows(parquet.metadata, found, file, partitions[0].rows)
                for column, own in found.items():
                    own.append(_type_of(parquet, column, file))
                    if column in request.keep:
                        _refuse_interval(parquet, column, file)
                    if column in request.keep and column not in request.declared:
                        _refuse_unknown(parquet, column, file)
                    missing = _count_nulls(parquet, column, file)
                    nulls[column] += missing
                    empty[column].append(missing == parquet.metadata.num_rows)
        for column, own in found.items():
            if not all(
                empty[column]
            ):  # a file without a value says nothing of the type: pandas gives NaN to missing texts
                found[column] = [
                    pa.null() if is_empty else one for one, is_empty in zip(own, empty[column], strict=True)
                ]
            if groups > 1:
                found[column] = [widen_indices(one) for one in found[column]]
        arrays: dict[str, ArrayColumn] = {}
        types: dict[str, pa.DataType] = {}
        for column, want in request.wants.items():
            _check_want(found[column], want, column, files)
            if want == "array" or (want == "image" and not _agree_encoded(column, files, found[column])):
                arrays[column] = _infer_array(files, column, found[column])
                if want == "image":
                    check_picture(arrays[column], f"column '{column}' of {files[0].url}")
            elif column not in request.keep:
                types[column] = pa.string() if want == "text" else pa.large_binary()
            else:
                types[column] = _unify(column, files, found[column], request)
        for column in request.keep:
            if column not in types:
                types[column] = _unify(column, files, found[column], request)
        # Rows without what is read are refused anyway.
        refused = sum(nulls[column] for column in request.wants)
        return Columns(types, arrays, {column: max(nulls[column] - refused, 0) for column in request.keep})

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> ParsedRows:
        """Read the rows of a segment, decoding only the row groups they lie in."""
        wanted = list(dict.fromkeys([*layout.types, *layout.arrays]))
        with _open(files[0]) as parquet:
            for column in wanted:
                _type_of(parquet, column, files[0])
            there = [column for column in wanted if column in parquet.schema_arrow.names]
            coded = find_coded(parquet, segment, there)
            table = None if coded else _slice_rows(parquet, segment, there, files[0])
            old = [column for column in layout.types if column in there and is_int96(parquet, column)]
        if table is None:
            with _open(files[0], coded=coded) as parquet:
                table = _slice_rows(parquet, segment, there, files[0])
        errors: dict[int, str] = {}
        check_lengths(table, files[0], errors)
        if errors:
            table = _blank(table, errors)
        for column in wanted:
            if column not in there:
                value = pa.scalar(folder_columns(files[0].url)[column], pa.string())
                table = table.append_column(column, pa.repeat(value, segment.rows))
            elif table.column(column).null_count == segment.rows:  # of whatever type, as this file says
                table = table.set_column(table.column_names.index(column), column, pa.nulls(segment.rows))
        coarse = None
        if old:
            with _open(files[0], "us") as parquet:
                coarse = _slice_rows(parquet, segment, old, files[0])
        columns: dict[str, pa.Array] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for column, target in layout.types.items():
            values = table.column(column)
            if column in layout.reads:
                _refuse_missing(values, column, errors)
            if coarse is not None and column in old and not pa.types.is_null(values.type):
                values = correct_int96(values, coarse.column(column), target, column, errors)
            columns[column] = convert_column(values, target, column, errors)
        for column, array in layout.arrays.items():
            wrong: dict[int, str] = {}
            arrays[column] = to_numpy(table.column(column), array, wrong)
            errors = {offset: f"column '{column}': {why}" for offset, why in wrong.items()} | errors
        offsets = np.setdiff1d(np.arange(segment.rows), list(errors))
        accepted = pa.array(offsets, pa.int64())
        shown = table.select(list(layout.types))
        return ParsedRows(
            offsets=offsets.tolist(),
            lines=(offsets + (segment.begin + 1)).tolist(),
            columns={column: values.take(accepted) if errors else values for column, values in columns.items()},
            arrays={column: values[offsets] if errors else values for column, values in arrays.items()},
            refused=[
                (offset, segment.begin + offset + 1, errors[offset], make_excerpt(describe_row(shown, offset)))
                for offset in sorted(errors)
            ],
        )


@contextmanager
def _open(file: InputFile, unit: str | None = None, coded: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a file; `unit` is what times of 96 bits are read in, `coded` are columns of which each value is held once."""
    filesystem, path = open_filesystem(file.url)
    with filesystem.open(path, "rb") as stream:
        refuse_footer(stream, file)
        try:
            # Arrow leaves the values of its extension types in no dictionary.
            options: dict[str, Any] = {"read_dictionary": list(coded), "arrow_extensions_enabled": not coded}
            yield pq.ParquetFile(stream, coerce_int96_timestamp_unit=unit, **options)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file.url} cannot be read as parquet: {error}", hint="Check input.format and the file."
            ) from error


def _blank(table: pa.Table, rows: Collection[int]) -> pa.Table:
    """Return a table with nulls in some rows, whose values are too long to be decoded."""
    mask = np.zeros(len(table), np.bool_)
    mask[list(rows)] = True
    kept = pa.array(np.where(mask, 0, np.arange(len(table))), mask=mask)
    return table.take(kept)


def _slice_rows(parquet: pq.ParquetFile, segment: Segment, columns: list[str], file: InputFile) -> pa.Table:
    pieces, stop = [], 0
    for number in range(parquet.num_row_groups):
        position, stop = stop, stop + parquet.metadata.row_group(number).num_rows
        if position >= segment.end or stop <= segment.begin:
            continue
        # Rows may be images: no more of them at once than are wanted. Arrow joins no nested dictionaries of row groups.
        at_once = rows_at_once(parquet.metadata, number, columns, segment.rows, file)
        for batch in parquet.iter_batches(at_once, row_groups=[number], columns=columns):
            low, high = max(segment.begin - position, 0), min(segment.end - position, batch.num_rows)
            if low < high:
                pieces.append(batch.slice(low, high - low))
            position += batch.num_rows
            if position >= segment.end:
                break
    return pa.Table.from_batches(pieces).select(columns)


def _type_of(parquet: pq.ParquetFile, column: str, file: InputFile) -> pa.DataType:
    names = parquet.schema_arrow.names
    if column not in names:
        if column in (told := folder_columns(file.url)):
            return pa.string()
        raise MissingColumn(column, file.url, [*names, *told])
    if (count := names.count(column)) > 1:
        raise InputError(
            f"{file.url} has {count} columns of the name '{column}', so it cannot be told which one is meant",
            hint="Write the file again with names of their own.",
        )
    return parquet.schema_arrow.field(column).type


def _unify(column: str, files: Sequence[InputFile], types: Sequence[pa.DataType], request: Request) -> pa.DataType:
    """Return the one type of a kept column: the declared one, else what holds the values of all files exactly."""
    if (declared := request.declared.get(column)) is not None:
        for file, own in zip(files, types, strict=True):
            if not can_convert(own, declared):
                raise InputError(
                    f"input.types.{column}: the column holds {describe_type(own)} in {file.url}, which cannot be read as "
                    f"{describe_type(declared)}",
                    hint="Leave it out of input.types, where its own type is kept, or name another type.",
                )
        return declared
    unified, first = lay_plain(types[0]), files[0]
    for file, own in zip(files, map(lay_plain, types), strict=True):
        wider = unify(unified, own)
        if wider is None or not can_convert(own, wider) or not can_convert(unified, wider):
            raise InputError(
                f"output.keep: column '{column}' holds {describe_type(unified)} in {first.url} and {describe_type(own)} in "
                f"{file.url}, and no type holds the values of both exactly",
                hint=_suggest(column, unified, own),
            )
        if wider != unified:
            unified, first = wider, file
    return unified


def _suggest(column: str, one: pa.DataType, other: pa.DataType) -> str:
    """Return what to do about two types that no type holds."""
    both = (one, other)
    names = ["timestamp[us, tz=UTC]"] if all(map(pa.types.is_timestamp, both)) else []
    if all(pa.types.is_integer(own) or pa.types.is_floating(own) for own in both):
        names = ["decimal128(20, 0)"] if all(map(pa.types.is_integer, both)) else ["int64"]
    names += ["json"] if any(map(pa.types.is_nested, both)) else ["string"]
    for name in names:
        if all(can_convert(own, parse_declared(name)) for own in both):
            return (
                f"Say which type is meant, such as input.types: {{{column}: {json.dumps(name)}}}, or narrow input.url."
            )
    return "Narrow input.url, or leave the column out of output.keep."


def _refuse_interval(parquet: pq.ParquetFile, column: str, file: InputFile) -> None:
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    if any(leaf.path == column and leaf.converted_type == "INTERVAL" for leaf in leaves):
        raise InputError(
            f"output.keep: column '{column}' of {file.url} holds intervals of months, days and milliseconds, which would "
            "come out as bytes without this meaning",
            hint="Write them as texts or numbers, or leave the column out of output.keep.",
        )


def _refuse_unknown(parquet: pq.ParquetFile, column: str, file: InputFile) -> None:
    """Refuse types that Arrow does not know here: it reads their plain values, and says what they mean beside them."""
    schema = parquet.schema_arrow
    unknown = find_extension(schema.field(column)) if column in schema.names else ""
    if unknown:
        raise InputError(
            f"output.keep: column '{column}' of {file.url} has the type {unknown}, which is not known here, and would come "
            "out as plain values without this meaning",
            hint="Import the module that registers it in every process, declare a plain type under input.types, or leave the column "
            f"out of output.keep. In this file it is {describe_type(schema.field(column).type)}.",
        )


def _refuse_missing(values: pa.ChunkedArray, column: str, errors: dict[int, str]) -> None:
    """Note the rows without what the task reads."""
    missing = values.is_null()
    if not is_text(values.type) and not pa.types.is_null(values.type):
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, "bytes")
        missing = values.is_null()
        for offset in _find(pc.equal(pc.binary_length(values.cast(pa.large_binary())), 0)):
            errors.setdefault(offset, f"column '{column}': is empty")
    for offset in _find(missing):
        errors.setdefault(offset, f"column '{column}': is null")


def _find(mask: pa.ChunkedArray) -> list[int]:
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy()).tolist()


def _check_want(types: Sequence[pa.DataType], want: Want, column: str, files: Sequence[InputFile]) -> None:
    """Refuse a column that is not what the task reads; files in which all is missing may be among the others."""
    what = {"text": "strings", "image": "images", "array": "numbers"}[want]
    for own, file in zip(types, files, strict=True):
        fits = {
            "text": is_text(own),
            "image": _is_encoded(own) or describe_array(own) is not None,
            "array": describe_array(own) is not None,
        }[want]
        if not fits and (not pa.types.is_null(own) or all(map(pa.types.is_null, types))):
            raise InputError(
                f"column '{column}' of {file.url} holds {describe_type(own)}, not {what}",
                hint=f"Name another column under input.columns, or write it as {what}.",
            )


def _agree_encoded(column: str, files: Sequence[InputFile], types: Sequence[pa.DataType]) -> bool:
    encoded = {file.url: _is_encoded(own) for file, own in zip(files, types, strict=True) if not pa.types.is_null(own)}
    if len(set(encoded.values())) > 1:
        yes, no = (next(url for url, is_encoded in encoded.items() if is_encoded is wanted) for wanted in (True, False))
        raise InputError(
            f"column '{column}' holds encoded images in {yes} and arrays in {no}",
            hint="Files of one input need the same columns; narrow input.url.",
        )
    return next(iter(encoded.values()))


def _infer_array(files: Sequence[InputFile], column: str, types: Sequence[pa.DataType]) -> ArrayColumn:
    described = [found for found in map(describe_array, types) if found is not None]
    dtype = np.result_type(*(found for found, _ in described))
    dims = described[0][1]
    shape = tuple(dim for dim in dims if dim is not None)
    if len(shape) < len(dims):
        shapes: Counter[tuple[int, ...]] = Counter()
        left = ARRAY_ROWS
        for number, file in enumerate(files):
            with _open(file) as parquet:
                rows = min(left, parquet.metadata.num_rows)
                if rows:
                    segment = Segment(file=number, begin=0, end=rows, rows=rows, line=0)
                    shapes += count_shapes(_slice_rows(parquet, segment, [column], file).column(column))
            left -= rows
        if not shapes:
            raise InputError(
                f"column '{column}' of {files[0].url}: none of the first {format_amount(ARRAY_ROWS, 'row')} is an array of numbers "
                "without nulls and with lists of equal lengths",
                hint="Name another column under input.columns.",
            )
        shape = shapes.most_common(1)[0][0]
    return ArrayColumn(dtype=dtype.name, shape=shape)


def _count_nulls(parquet: pq.ParquetFile, column: str, file: InputFile) -> int:
    """Return how many values of a column are known to be null; of what is nested nothing is known."""
    if column not in parquet.schema_arrow.names:
        return 0 if folder_columns(file.url)[column] is not None else int(parquet.metadata.num_rows)
    if pa.types.is_null(parquet.schema_arrow.field(column).type):
        return int(parquet.metadata.num_rows)
    names = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    if column not in names:
        return 0
    index, count = names.index(column), 0
    for number in range(parquet.num_row_groups):
        statistics = parquet.metadata.row_group(number).column(index).statistics
        if statistics is not None and statistics.has_null_count:
            count += statistics.null_count
    return count


def _is_encoded(own: pa.DataType) -> bool:
    """Whether values are the bytes of files, or as `datasets` writes images: structs of bytes and path."""
    if pa.types.is_struct(own) and own.get_field_index("bytes") >= 0:
        own = own.field("bytes").type
    return is_binary(own)
