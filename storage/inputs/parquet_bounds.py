"""What parquet files may make of few bytes: bounded by their footers, and by the lengths of values before they are decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daskinfer.errors import InputError
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.rows import InputFile, Segment
from daskinfer.storage.columns.types import is_binary, is_text
from daskinfer.units import format_amount

_LARGEST_FOOTER = 128 << 20
_BATCH_ROWS = 8192
_BATCH_BYTES = 64 << 20
_DECODED = 256 << 20
_EXPANSION = 200
"""Bytes for each that is stored, beyond the first `_DECODED` of a partition; text becomes ten to a hundred."""
_WIDTHS = {
    "BOOLEAN": 0,
    "INT32": 4,
    "FLOAT": 4,
    "INT64": 8,
    "DOUBLE": 8,
    "INT96": 12,
    "BYTE_ARRAY": 0,
    "FIXED_LEN_BYTE_ARRAY": 1,
}
"""Bytes of a value in memory, at least: a run of equal ones is stored in few, however long it is."""


def refuse_footer(stream: IO[bytes], file: InputFile) -> None:
    """Refuse a footer that claims more bytes than any has: whoever opens the file reads it whole.

    Examples
    --------
    >>> import io
    >>> huge = InputFile("a.parquet", size=1 << 30, etag="")
    >>> refuse_footer(io.BytesIO(struct.pack("<I", 100) + b"PAR1"), huge)
    >>> refuse_footer(io.BytesIO(struct.pack("<I", 1 << 29) + b"PAR1"), huge)
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: a.parquet: its footer has 536,870,912 bytes, and at most 134,217,728 are read
    It is damaged, or no parquet file; write it again with fewer columns or row groups.
    """
    if file.size <= _LARGEST_FOOTER:
        return
    stream.seek(-8, os.SEEK_END)
    length = struct.unpack("<I", stream.read(8)[:4])[0]
    stream.seek(0)
    if length > _LARGEST_FOOTER:
        raise InputError(
            f"{file.url}: its footer has {length:,} bytes, and at most {_LARGEST_FOOTER:,} are read",
            hint="It is damaged, or no parquet file; write it again with fewer columns or row groups.",
        )


def refuse_large_rows(metadata: pq.FileMetaData, columns: Collection[str], file: InputFile, rows: int) -> None:
    """Refuse row groups that cannot be held in memory, by the footer: a small file can hold any number of bytes.

    Parameters
    ----------
    metadata
        The footer.
    columns
        What is read.
    file
        Whose it is.
    rows
        How many are read at once: those of a partition.

    Examples
    --------
    >>> pq.write_table(pa.table({"counts": [[7] * 1000]}), "a.parquet")
    >>> with LONGEST_RECORD.override(1000):
    ...     refuse_large_rows(pq.read_metadata("a.parquet"), ["counts"], InputFile("a.parquet", size=900, etag=""), rows=1)
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: a.parquet: row group 0 has 8,000 bytes in 1 row of counts; a row may have at most 1,000
    Narrow input.url, or split what its rows hold.
    """
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size, stored = _sizes(group, columns, file)
        if size > max(group.num_rows, 1) * LONGEST_RECORD.get():
            raise InputError(
                f"{file.url}: row group {number} has {size:,} bytes in {format_amount(group.num_rows, 'row')} of {', '.join(columns)}; "
                f"a row may have at most {LONGEST_RECORD.get():,}",
                hint="Narrow input.url, or split what its rows hold.",
            )
        share = min(rows, group.num_rows)
        _refuse_expansion(size * share // max(group.num_rows, 1), stored, share, file)


def rows_at_once(metadata: pq.FileMetaData, number: int, columns: Collection[str], rows: int, file: InputFile) -> int:
    """Return how many rows of a row group are decoded together, of `rows` that are wanted.

    Examples
    --------
    >>> pq.write_table(pa.table({"id": range(10_000)}), "a.parquet")
    >>> file = InputFile("a.parquet", size=50_000, etag="")
    >>> rows_at_once(pq.read_metadata("a.parquet"), 0, ["id"], 10_000, file)
    8192
    """
    group = metadata.row_group(number)
    size, _ = _sizes(group, columns, file)
    return max(1, min(_BATCH_ROWS, rows, int(_BATCH_BYTES * group.num_rows // max(size, 1))))


def find_coded(parquet: pq.ParquetFile, segment: Segment, columns: Iterable[str]) -> list[str]:
    """Return the paths of texts or bytes whose values may be many more bytes than are stored: each once in a dictionary.

    Examples
    --------
    >>> pq.write_table(pa.table({"text": ["a" * 1000] * 1000, "tags": [["b" * 1000] * 1000] * 1000}), "a.parquet")
    >>> segment = Segment(file=0, begin=0, end=1000, rows=1000, line=0)
    >>> with pq.ParquetFile("a.parquet") as parquet:
    ...     find_coded(parquet, segment, ["text", "tags"])
    ['tags.list.element']
    """
    metadata, schema, wanted = parquet.metadata, parquet.schema, set(columns)
    leaves = [
        index
        for index, own in enumerate(_leaves(parquet.schema_arrow))
        if (is_text(own) or is_binary(own))
        and not pa.types.is_dictionary(own)
        and schema.column(index).path.split(".")[0] in wanted
    ]
    found: dict[str, None] = {}
    stop = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        first, stop = stop, stop + group.num_rows
        rows = min(stop, segment.end) - max(first, segment.begin)
        for index in leaves if rows > 0 else ():
            chunk = group.column(index)
            values = chunk.num_values if schema.column(index).max_repetition_level else rows
            # No value is longer than what its chunk holds.
            if chunk.has_dictionary_page and values * chunk.total_uncompressed_size > _DECODED:
                found[chunk.path_in_schema] = None
    return list(found)


def check_lengths(table: pa.Table, file: InputFile, errors: dict[int, str]) -> None:
    """Note rows whose values are too long, and refuse a partition whose values are; nothing is decoded for that.

    Parameters
    ----------
    table
        Rows as they were read: texts and bytes of which each is held once are told by their types.
    file
        Where they are from.
    errors
        Number of a row -> why it is refused.

    Examples
    --------
    >>> errors = {}
    >>> table = pa.table({"text": pa.array(["a", "b"]).dictionary_encode()})
    >>> check_lengths(table, InputFile("a.parquet", size=100, etag=""), errors)
    >>> errors
    {}
    """
    whole = 0
    for column in table.column_names:
        offset = 0
        for chunk in table.column(column).chunks if _has_coded(table.schema.field(column).type) else ():
            lengths = _lengths(chunk)
            for index in np.flatnonzero(lengths > LONGEST_RECORD.get()).tolist():
                what = f"has {lengths[index]:,} bytes; a row may have at most {LONGEST_RECORD.get():,}"
                errors.setdefault(offset + index, f"column '{column}': {what}")
            whole += int(lengths.sum())
            offset += len(chunk)
    _refuse_expansion(whole, file.size, len(table), file)


def _has_coded(own: pa.DataType) -> bool:
    """Whether a type holds texts or bytes in dictionaries."""
    if pa.types.is_dictionary(own):
        return is_text(own.value_type) or is_binary(own.value_type)
    return any(_has_coded(own.field(index).type) for index in range(own.num_fields))


def _lengths(values: pa.Array) -> NDArray[np.int64]:
    """Return how many bytes of texts and bytes each value holds in dictionaries, at whatever depth."""
    own = values.type
    if not _has_coded(own):
        return np.zeros(len(values), np.int64)
    if pa.types.is_dictionary(own):
        sizes = pc.take(pc.binary_length(values.dictionary), values.indices)
        return np.asarray(pc.fill_null(sizes.cast(pa.int64()), 0), np.int64)
    if pa.types.is_struct(own):
        return np.asarray(sum(_lengths(values.field(index)) for index in range(own.num_fields)), np.int64)
    if pa.types.is_map(own):
        inner, offsets = _lengths(values.keys) + _lengths(values.items), values.offsets.to_numpy()
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(inner)])
        return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]])
    found = np.zeros(len(values), np.int64)
    np.add.at(found, pc.list_parent_indices(values).to_numpy(), _lengths(pc.list_flatten(values)))
    return found


def _sizes(group: pq.RowGroupMetaData, columns: Collection[str], file: InputFile) -> tuple[int, int]:
    """Return the bytes of some columns of a row group, at least those of numbers decoded, and as they are stored."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    read = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
    decoded = sum(max(chunk.total_uncompressed_size, chunk.num_values * _WIDTHS[chunk.physical_type]) for chunk in read)
    return decoded, min(sum(chunk.total_compressed_size for chunk in read), file.size)


def _leaves(own: pa.Schema | pa.DataType) -> Iterator[pa.DataType]:
    """Return the types of what is nested in no further type, which Parquet has a column of each for, in its order."""
    if isinstance(own, pa.BaseExtensionType):
        own = own.storage_type
    fields = list(own) if isinstance(own, pa.Schema) else [own.field(index) for index in range(own.num_fields)]
    for field in fields:
        yield from _leaves(field.type)
    if not fields:
        yield own


def _refuse_expansion(size: int, stored: int, rows: int, file: InputFile) -> None:
    most = max(_DECODED, _EXPANSION * stored)
    if size > most:
        raise InputError(
            f"{file.url}: {format_amount(rows, 'row')} expand from {stored:,} to {size:,} bytes, and at most {most:,} are read at once",
            hint="Lower input.partition_rows, the rows that are read at once, or look at what is in it.",
        )
