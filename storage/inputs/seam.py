"""The seam between a job and a file format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from daskinfer.spec.rows import InputFile, Segment


class Rows(Protocol):
    """Consecutive rows of a file, so that a partition can be cut out of them."""

    def __len__(self) -> int: ...

    def bounds(self, first: int, last: int) -> tuple[int, int, int]:
        """Return begin, end and line, as a `Segment` has them, of the rows from `first` up to `last`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a format must know of its columns to read a row."""

    kinds: Mapping[str, str]
    """Column -> string, int64, float64 or bool, in the order of the table."""
    reads: tuple[str, ...]
    """Those that the task reads: strings that must be there."""
    header: tuple[str, ...] = ()
    """csv: names of all columns of the files."""


@dataclass(slots=True)
class Harvest:
    """What came out of some rows; `offsets` count within the segment."""

    offsets: list[int] = field(default_factory=list)
    """Accepted rows."""
    lines: list[int] = field(default_factory=list)
    """Their line numbers."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Their values: lists, or arrow arrays."""
    refused: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(offset, line, why, excerpt) of every other row."""


class InputFormat(Protocol):
    """How the rows of one file format are found and read."""

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return the names of all columns where the files have a header of text; it must be the same in all."""

    def scan(self, file: InputFile) -> Iterator[Rows]:
        """Find the rows of a file, in flat memory."""

    def infer(
        self,
        files: Sequence[InputFile],
        segments: Sequence[Segment],
        header: tuple[str, ...],
        reads: Sequence[str],
        keep: Sequence[str],
    ) -> dict[str, str]:
        """Return the kind of every wanted column, from the schemas or from the rows of the first partition.

        Raises
        ------
        MissingColumn
            Where a file has no such column.
        """

    def read(self, file: InputFile, segment: Segment, layout: Layout) -> Harvest:
        """Read the rows of a segment."""


class MissingColumn(Exception):
    """A file lacks a wanted column."""

    def __init__(self, column: str, file: str, there: Sequence[str]) -> None:
        super().__init__(column, file, tuple(there))
        self.column = column
        self.file = file
        self.there = tuple(there)
