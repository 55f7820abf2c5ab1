"""The seam between a job and an input format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from daskinfer.spec.rows import ArrayColumn, InputFile, Partition, Segment, Want


@dataclass(frozen=True, slots=True)
class Request:
    """Which columns a job wants of its input."""

    wants: Mapping[str, Want]
    """Column -> what the task reads it as."""
    keep: tuple[str, ...] = ()
    """Columns that the output copies."""
    declared: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Column -> its type, where the recipe says it."""
    output: str = ""
    """Format of the output: jsonl, parquet or zarr."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys([*self.wants, *self.keep, *self.declared]))


@dataclass(frozen=True, slots=True)
class Columns:
    """What the wanted columns hold."""

    types: Mapping[str, pa.DataType]
    """Column -> type: texts, encoded images and what is kept."""
    arrays: Mapping[str, ArrayColumn] = field(default_factory=dict)
    """Column -> what its rows are: arrays and images that are not encoded."""
    nulls: Mapping[str, int] = field(default_factory=dict)
    """Column -> rows that are known to be null."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a format must know of its columns to read a row."""

    types: Mapping[str, pa.DataType]
    """Column -> type, in the order of the table."""
    reads: tuple[str, ...]
    """Those that the task reads: strings or encoded images that must be there."""
    header: tuple[str, ...] = ()
    """csv: names of all columns of the files."""
    arrays: Mapping[str, ArrayColumn] = field(default_factory=dict)
    """Columns of arrays that the task reads."""
    output: str = ""
    """Format of the output, which may not hold every value; see `daskinfer.storage.columns.format_limits`."""


@dataclass(slots=True)
class ParsedRows:
    """What came out of some rows; `offsets` count within the segment."""

    offsets: list[int] = field(default_factory=list)
    """Accepted rows."""
    lines: list[int] = field(default_factory=list)
    """Their line numbers."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Their values: lists, or arrow arrays."""
    arrays: dict[str, Any] = field(default_factory=dict)
    """Column -> their arrays: (n, ...), or a list of n."""
    refused: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(offset, line, why, excerpt) of every other row."""
    sources: Sequence[str] = ()
    """URL of every row of the segment, where that is not the URL of its first file."""

    def drop(self, refused: Mapping[int, tuple[int, int, str, str]]) -> None:
        """Refuse accepted rows after all, by their index among these; the columns must be arrow arrays."""
        if not refused:
            return
        left = [index for index in range(len(self.offsets)) if index not in refused]
        chosen = pa.array(left, pa.int64())
        self.columns = {column: values.take(chosen) for column, values in self.columns.items()}
        self.arrays = {column: [values[index] for index in left] for column, values in self.arrays.items()}
        self.offsets = [self.offsets[index] for index in left]
        self.lines = [self.lines[index] for index in left]
        self.refused = sorted([*self.refused, *refused.values()])


class InputFormat(Protocol):
    """How the rows of one format are found and read."""

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return the names of all columns where the files have a header of text; it must be the same in all."""

    def cut(self, files: Sequence[InputFile], columns: Sequence[str], partition_rows: int) -> Iterator[Partition]:
        """Find all rows, in flat memory, and cut them into partitions.

        Raises
        ------
        MissingColumn
            Where one of the columns is needed to count the rows, and is not there.
        """

    def infer(
        self, files: Sequence[InputFile], partitions: Sequence[Partition], header: tuple[str, ...], request: Request
    ) -> Columns:
        """Return what the wanted and the kept columns hold, once for all rows.

        Types come from the recipe, from schemas, or from all rows, however they are cut.

        Raises
        ------
        MissingColumn
            Where a file has no such column.
        InputError
            Where a column cannot be what is wanted of it.
        """

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> ParsedRows:
        """Read the rows of a segment; `files` are its own, the first and `more`."""


class MissingColumn(Exception):
    """A file lacks a wanted column.

    Examples
    --------
    >>> raise MissingColumn("text", "a.jsonl", ["Text", "id"])
    Traceback (most recent call last):
        ...
    daskinfer.storage.inputs.interface.MissingColumn: ('text', 'a.jsonl', ('Text', 'id'))
    """

    def __init__(self, column: str, file: str, there: Sequence[str]) -> None:
        super().__init__(column, file, tuple(there))
        self.column = column
        self.file = file
        self.there = tuple(there)
