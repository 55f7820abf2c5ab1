"""Rows as a worker holds them: the accepted ones of a partition, and those that were refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from daskinfer.spec.rows import Partition, Reject

EXCERPT_LENGTH = 200


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """The rows of a partition."""

    partition: Partition
    """Which rows these are."""
    positions: NDArray[np.int32]
    """Position in the partition, from 0, of every accepted row, ascending."""
    lines: NDArray[np.int64]
    """Line number of every accepted row; row number in its file for parquet; both from 1."""
    sources: tuple[str, ...]
    """URL of the file of each of the partition's segments."""
    table: pa.Table
    """Accepted rows, only the columns that the job reads or keeps."""
    rejects: tuple[Reject, ...]
    """Refused rows, ascending."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Array column -> (n, ...) values of the accepted rows."""

    def __len__(self) -> int:
        return len(self.positions)

    def strings(self, column: str) -> list[str]:
        """Return a string column of the accepted rows."""
        values: list[str] = self.table.column(column).to_pylist()
        return values

    def without(self, refused: Mapping[int, str]) -> RowBatch:
        """Return the batch with some accepted rows moved to the rejects.

        Parameters
        ----------
        refused
            Position in the partition -> why, in one sentence.
        """
        if not refused:
            return self
        keep = ~np.isin(self.positions, list(refused))
        moved = tuple(self._refuse(index, refused) for index in np.flatnonzero(~keep).tolist())
        return RowBatch(
            partition=self.partition,
            positions=self.positions[keep],
            lines=self.lines[keep],
            sources=self.sources,
            table=self.table.take(pa.array(np.flatnonzero(keep))),
            rejects=tuple(sorted((*self.rejects, *moved), key=lambda reject: reject.row)),
        )

    def _refuse(self, index: int, refused: Mapping[int, str]) -> Reject:
        position = int(self.positions[index])
        row = self.table.slice(index, 1).to_pylist()[0]
        return Reject(
            row=self.partition.first_row + position,
            source=self.sources[self._segment_of(position)],
            line=int(self.lines[index]),
            error=refused[position],
            excerpt=make_excerpt(json.dumps(row, ensure_ascii=False)),
        )

    def _segment_of(self, position: int) -> int:
        ends = np.cumsum([segment.rows for segment in self.partition.segments])
        return int(np.searchsorted(ends, position, side="right"))


def make_excerpt(text: str) -> str:
    """Return the beginning of a row, for the quarantine."""
    text = text.strip()
    return text if len(text) <= EXCERPT_LENGTH else text[: EXCERPT_LENGTH - 1] + "…"
