"""Rows on their way in: files, partitions, microbatches and the rows that were refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daskinfer.spec.section import Section

Want = Literal["text", "image", "array"]
"""What a task reads a column as."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input as it was when the job started; of a Zarr group, one object."""

    url: str
    """Full URL."""
    size: int
    """Length in bytes."""
    etag: str
    """What changes when the content does: an object's etag, or a local file's modification time."""


class Segment(Section):
    """Consecutive rows of one file, images or a Zarr group that belong to a partition."""

    file: int
    """Index into the partition table's files."""
    begin: int
    """First byte (line formats) or first row (parquet, Zarr)."""
    end: int
    """One past the last byte or row."""
    rows: int
    """Rows in the segment."""
    line: int
    """Line number of the first row, counted from 1 (line formats); 0 for the others."""
    more: tuple[int, ...] = ()
    """Further files that the rows lie in: the other images, or the chunks of a Zarr group."""


class Partition(Section):
    """A numbered row range of the input, the unit of commit and retry."""

    number: int
    """Position in the table, from 0."""
    first_row: int
    """Global number of its first row."""
    rows: int
    """Rows, the refused ones included."""
    segments: tuple[Segment, ...]
    """Where the rows lie, in order."""


class ArrayColumn(Section):
    """A column whose rows are arrays of one shape."""

    dtype: str
    """uint8, int64, float32 ..."""
    shape: tuple[int, ...]
    """Shape of one row; () for numbers."""


class PartitionTable(Section):
    """The input, cut into partitions once and for the whole job."""

    format: str
    """jsonl, csv, text, parquet, images or zarr."""
    files: tuple[InputFile, ...]
    """All files in order."""
    partition_rows: int
    """Rows of every partition but the last."""
    rows: int
    """Rows in all."""
    partitions: tuple[Partition, ...]
    """All partitions in order."""
    columns: dict[str, str]
    """Column name -> kind (string, int64, float64, bool, binary) of the columns that the job reads or keeps."""
    reads: tuple[str, ...] = ("text",)
    """Those of them that the task reads: strings or encoded images that must be there."""
    arrays: dict[str, ArrayColumn] = {}
    """Columns of arrays that the task reads."""
    header: tuple[str, ...] = ()
    """csv: names of all columns, in file order."""


Fault = Literal["raised", "hung", "killed"]
"""What a row did to the worker that computed it."""
RejectKind = Literal["unreadable", "refused", Fault]
"""`unreadable`: it is not a row of the input's format. `refused`: the model's encoder does not take it."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was refused, for the quarantine."""

    row: int
    """Global row number."""
    source: str
    """URL of its file."""
    line: int
    """Line number from 1 in line formats; row number from 1 in the others."""
    error: str
    """Why it was refused, in one sentence."""
    excerpt: str
    """The beginning of the row as it was read."""
    kind: RejectKind = "unreadable"
    """What kind of failure it was."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """A slice of a partition with a near constant number of padded tokens."""

    rows: tuple[int, ...]
    """Positions in the partition's accepted rows, longest first."""
    length: int
    """Padded length in tokens."""

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return len(self.rows) * self.length
