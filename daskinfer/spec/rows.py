"""Rows on their way in: files, partitions, microbatches and the rows that were refused."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, overload

from pydantic import PlainSerializer, PlainValidator

from daskinfer.spec.recipe.dialect import Csv
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
    encoding: str = ""
    """Of text, where it is not UTF-8: the name by which Python knows its encoding."""


@dataclass(frozen=True, slots=True)
class Segment:
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


@dataclass(frozen=True, slots=True)
class Partition:
    """A numbered row range of the input, the unit of commit and retry."""

    number: int
    """Position in the table, from 0."""
    first_row: int
    """Global number of its first row."""
    rows: int
    """Rows, the refused ones included."""
    segments: tuple[Segment, ...]
    """Where the rows lie, in order."""


class Partitions(Sequence[Partition]):
    """All partitions in order, kept as columns of numbers: a table has hundreds of thousands, and one is asked for at a time.

    Parameters
    ----------
    partitions
        Numbered from 0; none is held longer than until the next one is taken.

    Examples
    --------
    >>> segment = Segment(file=0, begin=0, end=90, rows=3, line=1)
    >>> found = Partitions([Partition(number=0, first_row=0, rows=3, segments=(segment,))])
    >>> len(found), found[0].rows, Partitions.restore(found.columns) == found
    (1, 3, True)
    """

    def __init__(self, partitions: Iterable[Partition] = ()) -> None:
        self._columns = {name: array("q") for name in _OF_PARTITIONS + _OF_SEGMENTS + _OF_OTHERS}
        for partition in partitions:
            self._append(partition)

    @classmethod
    def restore(cls, columns: Mapping[str, Sequence[int]]) -> Partitions:
        """Return the partitions that these columns were.

        Raises
        ------
        ValueError
            They do not belong together.
        """
        found = cls()
        try:
            found._columns = {name: array("q", columns[name]) for name in found._columns}
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError("not the columns of a partition table") from error
        for names, ends in ((_OF_SEGMENTS, "segments_end"), (_OF_OTHERS, "others_end")):
            wanted = max(found._columns[ends], default=0)
            if any(len(found._columns[name]) != wanted for name in names):
                raise ValueError("the columns of the partition table do not belong together")
        return found

    @property
    def columns(self) -> dict[str, list[int]]:
        """What `restore` takes."""
        return {name: column.tolist() for name, column in self._columns.items()}

    def __len__(self) -> int:
        return len(self._columns["first_row"])

    @overload
    def __getitem__(self, index: int) -> Partition: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Partition, ...]: ...
    def __getitem__(self, index: int | slice) -> Partition | tuple[Partition, ...]:
        numbers = range(len(self))[index]
        return tuple(map(self._make, numbers)) if isinstance(numbers, range) else self._make(numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partitions) and self._columns == other._columns

    def __hash__(self) -> int:
        return hash(self._columns["end"].tobytes())

    def _append(self, partition: Partition) -> None:
        columns = self._columns
        for segment in partition.segments:
            for name in ("file", "begin", "end", "rows", "line"):
                columns[name].append(getattr(segment, name))
            columns["others"].extend(segment.more)
            columns["others_end"].append(len(columns["others"]))
        columns["first_row"].append(partition.first_row)
        columns["segments_end"].append(len(columns["file"]))

    def _make(self, number: int) -> Partition:
        ends = self._columns["segments_end"]
        segments = tuple(map(self._make_segment, range(ends[number - 1] if number else 0, ends[number])))
        return Partition(
            number=number,
            first_row=self._columns["first_row"][number],
            rows=sum(segment.rows for segment in segments),
            segments=segments,
        )

    def _make_segment(self, index: int) -> Segment:
        file, begin, end, rows, line = (self._columns[name][index] for name in ("file", "begin", "end", "rows", "line"))
        ends = self._columns["others_end"]
        more = self._columns["others"][ends[index - 1] if index else 0 : ends[index]]
        return Segment(file=file, begin=begin, end=end, rows=rows, line=line, more=tuple(more))


_OF_PARTITIONS = ("first_row", "segments_end")
_OF_SEGMENTS = ("file", "begin", "end", "rows", "line", "others_end")
_OF_OTHERS = ("others",)


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
    partitions: Annotated[
        Partitions,
        PlainValidator(lambda found: found if isinstance(found, Partitions) else Partitions.restore(found)),
        PlainSerializer(lambda found: found.columns),
    ]
    """All partitions in order."""
    columns: dict[str, str]
    """Column name -> type of the columns that the job reads or keeps: string, int64, float64, bool, or text that
    `daskinfer.storage.columns.types` reads."""
    reads: tuple[str, ...] = ("text",)
    """Those of them that the task reads: strings or encoded images that must be there."""
    arrays: dict[str, ArrayColumn] = {}
    """Columns of arrays that the task reads."""
    header: tuple[str, ...] = ()
    """csv: names of all columns, in file order."""
    csv: Csv = Csv()
    """csv: how the files are written."""
    output: str = ""
    """Format of the output, jsonl, parquet or zarr, that decides which values fit; "" in tables of earlier versions."""


Fault = Literal["raised", "hung", "killed"]
"""What a row did to the worker that computed it."""
RejectKind = Literal["unreadable", "refused", "not-finite", Fault]
"""`unreadable`: it is not a row of the input's format. `refused`: the model's encoder does not take it. `not-finite`: the
model returned NaN or infinity for it."""


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
