"""What parquet files may make of few bytes: bounded by their footers, and by the lengths of values before they are decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    >>> from types import SimpleNamespace
    >>> chunk = SimpleNamespace(path_in_schema="text", total_compressed_size=9_000, total_uncompressed_size=2**30)
    >>> group = SimpleNamespace(num_rows=1, num_columns=1, column=lambda index: chunk)
    >>> metadata = SimpleNamespace(num_row_groups=1, row_group=lambda number: group)
    >>> refuse_large_rows(metadata, ["text"], InputFile("a.parquet", size=10_000, etag=""), rows=1)
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: a.parquet: row group 0 has 1,073,741,824 bytes in 1 row of text; ...
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
    """Return the columns of texts or bytes whose values may be many more bytes than are stored: each once in a dictionary.

    Examples
    --------
    >>> pq.write_table(pa.table({"text": ["a" * 1000] * 1000}), "a.parquet")
    >>> segment = Segment(file=0, begin=0, end=1000, rows=1000, line=0)
    >>> with pq.ParquetFile("a.parquet") as parquet:
    ...     find_coded(parquet, segment, ["text"])
    []
    """
    metadata, schema = parquet.metadata, parquet.schema_arrow
    wanted = {column for column in columns if is_text(own := schema.field(column).type) or is_binary(own)}
    wanted -= {column for column in wanted if pa.types.is_dictionary(schema.field(column).type)}
    found: dict[str, None] = {}
    stop = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        first, stop = stop, stop + group.num_rows
        rows = min(stop, segment.end) - max(first, segment.begin)
        for index in range(group.num_columns if rows > 0 else 0):
            chunk = group.column(index)
            # No value is longer than what its chunk holds.
            if chunk.path_in_schema in wanted and rows * chunk.total_uncompressed_size > _DECODED:
                found |= {chunk.path_in_schema: None} if chunk.has_dictionary_page else {}
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
        own = table.schema.field(column).type
        if not pa.types.is_dictionary(own) or not (is_text(own.value_type) or is_binary(own.value_type)):
            continue
        offset = 0
        for chunk in table.column(column).chunks:
            sizes = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            lengths = pc.fill_null(sizes.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
            for index in np.flatnonzero(lengths > LONGEST_RECORD.get()).tolist():
                what = f"has {lengths[index]:,} bytes; a row may have at most {LONGEST_RECORD.get():,}"
                errors.setdefault(offset + index, f"column '{column}': {what}")
            whole += int(lengths.sum())
            offset += len(chunk)
    _refuse_expansion(whole, file.size, len(table), file)


def _sizes(group: pq.RowGroupMetaData, columns: Collection[str], file: InputFile) -> tuple[int, int]:
    """Return the bytes of some columns of a row group, decompressed and as they are stored."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    read = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
    stored = sum(chunk.total_compressed_size for chunk in read)
    return sum(chunk.total_uncompressed_size for chunk in read), min(stored, file.size)


def _refuse_expansion(size: int, stored: int, rows: int, file: InputFile) -> None:
    if size > max(_DECODED, _EXPANSION * stored):
        raise InputError(
            f"{file.url}: {format_amount(rows, 'row')} expand from {stored:,} to {size:,} bytes, which no file of rows does",
            hint="Lower input.partition_rows, the rows that are read at once, or look at what is in it.",
        )
