"""Cutting files whose rows lie one after another into partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from daskinfer.errors import InputError
from daskinfer.spec.rows import InputFile, Partition, Segment
from daskinfer.storage.inputs.files import unchanged
from daskinfer.units import format_amount

MOST_PARTITIONS = 1_000_000
"""Of one input: the table of so many takes 80 MB."""


class Rows(Protocol):
    """Consecutive rows of a file."""

    def __len__(self) -> int: ...

    def bounds(self, first: int, last: int) -> tuple[int, int, int]:
        """Return begin, end and line, as a `Segment` has them, of the rows from `first` up to `last`."""


def cut_files(
    scan: Callable[[InputFile], Iterator[Rows]], files: Sequence[InputFile], partition_rows: int
) -> Iterator[Partition]:
    r"""Cut the rows that `scan` finds in each file into partitions, which may cross files.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.storage.inputs.files import find_input
    >>> from daskinfer.storage.inputs.text.lines import LineFormat
    >>> for name in ("a.txt", "b.txt"):
    ...     _ = Path(name).write_text("one\ntwo\nthree\n")
    >>> files = find_input(Input(url="*.txt")).files
    >>> [[segment.file for segment in found.segments] for found in cut_files(LineFormat("text").scan, files, 4)]
    [[0, 1], [1]]
    """
    segments: list[Segment] = []
    held = number = 0
    for index, rows in _scan_all(scan, files):
        taken = 0
        while taken < len(rows):
            count = min(partition_rows - held, len(rows) - taken)
            begin, end, line = rows.bounds(taken, taken + count)
            segment = Segment(file=index, begin=begin, end=end, rows=count, line=line)
            if segments and segments[-1].file == index:
                segment = _join(segments.pop(), segment)
            segments.append(segment)
            taken += count
            held += count
            if held == partition_rows:
                yield _close(number, partition_rows, segments)
                segments, held, number = [], 0, number + 1
    if segments:
        yield _close(number, partition_rows, segments)


def cut_evenly(rows: int, partition_rows: int, segment_of: Callable[[int, int], Segment]) -> Iterator[Partition]:
    """Cut rows that are known by their numbers into partitions of one segment each.

    Parameters
    ----------
    rows
        How many there are.
    partition_rows
        Rows of every partition but the last.
    segment_of
        (first row, one past the last) -> segment.

    Examples
    --------
    >>> segment_of = lambda first, last: Segment(file=0, begin=first, end=last, rows=last - first, line=0)
    >>> [(found.first_row, found.rows) for found in cut_evenly(10, 4, segment_of)]
    [(0, 4), (4, 4), (8, 2)]
    """
    if rows > MOST_PARTITIONS * partition_rows:  # a claim of metadata: nobody has counted them
        raise InputError(
            f"input.url: {format_amount(rows, 'row')} are more than {format_amount(MOST_PARTITIONS, 'partition')} of {partition_rows:,}",
            hint="Raise input.partition_rows, or correct the metadata that claims so many.",
        )
    for number, first in enumerate(range(0, rows, partition_rows)):
        last = min(first + partition_rows, rows)
        yield Partition(number=number, first_row=first, rows=last - first, segments=(segment_of(first, last),))


def _scan_all(scan: Callable[[InputFile], Iterator[Rows]], files: Sequence[InputFile]) -> Iterator[tuple[int, Rows]]:
    for index, file in enumerate(files):
        with unchanged([file]):
            for rows in scan(file):
                yield index, rows


def _join(first: Segment, second: Segment) -> Segment:
    return replace(first, end=second.end, rows=first.rows + second.rows)


def _close(number: int, partition_rows: int, segments: list[Segment]) -> Partition:
    rows = sum(segment.rows for segment in segments)
    return Partition(number=number, first_row=number * partition_rows, rows=rows, segments=tuple(segments))
