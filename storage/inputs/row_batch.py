"""Rows as a worker holds them: the accepted ones of a partition, and those that were refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from daskinfer.ids import parse_json
from daskinfer.spec.rows import Partition, Reject, RejectKind
from daskinfer.storage.columns.json_text import describe_row
from daskinfer.storage.columns.types import JSON

EXCERPT_LENGTH = 200


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """The rows of a partition."""

    partition: Partition
    """Which rows these are."""
    positions: NDArray[np.int32]
    """Position in the partition, from 0, of every accepted row, ascending."""
    lines: NDArray[np.int64]
    """Line number of every accepted row, or row number in its file where there are no lines; both from 1."""
    sources: tuple[str, ...]
    """URL of the file of every accepted row."""
    table: pa.Table
    """Accepted rows, only the columns that the job reads or keeps."""
    rejects: tuple[Reject, ...]
    """Refused rows, ascending."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Array column -> (n, ...) values of the accepted rows."""
    seconds: float = 0.0
    """Spent reading them."""

    def __len__(self) -> int:
        return len(self.positions)

    def values(self, column: str) -> Sequence[Any] | NDArray[Any]:
        """Return a column of the accepted rows: an array, strings or bytes."""
        if column in self.arrays:
            return self.arrays[column]
        found = self.table.column(column)
        if found.type == JSON:
            return [parse_json(text) for text in found.combine_chunks().storage.to_pylist()]
        if pa.types.is_struct(found.type):  # as `datasets` writes images
            found = pc.struct_field(found, "bytes")
        values: list[Any] = found.to_pylist()
        return values

    def without(self, refused: Mapping[int, str], kinds: Mapping[int, RejectKind] | None = None) -> RowBatch:
        """Return the batch with some accepted rows moved to the rejects.

        Parameters
        ----------
        refused
            Position in the partition -> why, in one sentence.
        kinds
            Position -> kind of failure, where it is not that the model's encoder refused the row.
        """
        if not refused:
            return self
        keep = ~np.isin(self.positions, list(refused))
        moved = tuple(self._refuse(index, refused, kinds or {}) for index in np.flatnonzero(~keep).tolist())
        return self._keep(keep, tuple(sorted((*self.rejects, *moved), key=lambda reject: reject.row)))

    def only(self, positions: Collection[int]) -> RowBatch:
        """Return the batch with no other rows, accepted or refused, than those at these positions."""
        first = self.partition.first_row
        rejects = tuple(reject for reject in self.rejects if reject.row - first in positions)
        return self._keep(np.isin(self.positions, list(positions)), rejects)

    def _keep(self, keep: NDArray[np.bool_], rejects: tuple[Reject, ...]) -> RowBatch:
        return RowBatch(
            partition=self.partition,
            positions=self.positions[keep],
            lines=self.lines[keep],
            sources=tuple(compress(self.sources, keep)),
            # A table without columns has no rows.
            table=self.table.filter(pa.array(keep)) if self.table.num_columns else self.table,
            rejects=rejects,
            arrays={column: values[keep] for column, values in self.arrays.items()},
            seconds=self.seconds,
        )

    def _refuse(self, index: int, refused: Mapping[int, str], kinds: Mapping[int, RejectKind]) -> Reject:
        position = int(self.positions[index])
        return Reject(
            row=self.partition.first_row + position,
            source=self.sources[index],
            line=int(self.lines[index]),
            error=refused[position],
            excerpt=make_excerpt(describe_row(self.table, index)),
            kind=kinds.get(position, "refused"),
        )


def make_excerpt(text: str) -> str:
    r"""Return the beginning of a row, for the quarantine.

    Examples
    --------
    >>> make_excerpt("  short\n"), len(make_excerpt("long" * 1000))
    ('short', 200)
    """
    text = text.strip()
    return text if len(text) <= EXCERPT_LENGTH else text[: EXCERPT_LENGTH - 1] + "…"
