"""Packing rows into microbatches. What shares a microbatch decides bits, so this is a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daskinfer.spec.outline import Sharing
from daskinfer.spec.rows import Microbatch

# What a microbatch costs beside its tokens (graph, scheduling, hand-off), in tokens of a small encoder.
OVERHEAD_TOKENS = 32


ANY_ROWS = Sharing()
"""Rows share microbatches freely."""


def pack_microbatches(
    lengths: Sequence[int] | np.ndarray, tokens: int, sharing: Sharing = ANY_ROWS
) -> tuple[Microbatch, ...]:
    """Sort rows by length, longest first, and cut them so that padding and the number of microbatches cost least.

    The cuts minimise the sum of padded tokens and `OVERHEAD_TOKENS` a microbatch, by dynamic programming over the
    sorted rows. Rows of equal length keep their order, so equal lengths always give equal microbatches.

    Parameters
    ----------
    lengths
        Length of every row in tokens, shape (rows,).
    tokens
        Most padded tokens of a microbatch; a row longer than that travels alone.
    sharing
        Which rows may share one.

    Returns
    -------
    tuple of Microbatch
        Every row in exactly one microbatch.

    Examples
    --------
    >>> [(batch.rows, batch.length) for batch in pack_microbatches([3, 100, 5, 98], tokens=256)]
    [((1, 3), 100), ((2, 0), 5)]
    """
    sizes = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-sizes, kind="stable")
    starts = _choose_cuts(sizes[order], tokens, group_rows(sizes[order], sharing))
    ends = [*starts, len(order)][1:]
    return tuple(
        Microbatch(rows=tuple(order[start:end].tolist()), length=int(sizes[order[start]]))
        for start, end in zip(starts, ends, strict=True)
    )


def group_rows(lengths: np.ndarray, sharing: Sharing) -> np.ndarray:
    """Return a number for every row, shape (rows,): rows of different numbers never share a microbatch.

    Examples
    --------
    >>> group_rows(np.array([9, 9, 5, 2]), Sharing(rows="same length", beyond=4))
    array([10, 10,  6,  0])
    """
    if sharing.rows == "any":
        return (lengths > sharing.beyond).astype(np.int64)
    groups = lengths + 1 if sharing.rows == "same length" else np.arange(1, len(lengths) + 1)
    return np.where(lengths > sharing.beyond, groups, 0)


def _choose_cuts(sizes: np.ndarray, tokens: int, groups: np.ndarray) -> list[int]:
    """Return where each microbatch of the falling `sizes` begins."""
    rows = len(sizes)
    # Rows of a group lie together: up to the next one's first row.
    borders = np.append(np.flatnonzero(groups[1:] != groups[:-1]) + 1, rows)
    left = borders[np.searchsorted(borders, np.arange(rows), side="right")] - np.arange(rows)
    most = np.minimum(np.maximum(1, tokens // sizes), left)
    cost = np.zeros(rows + 1, dtype=np.int64)  # of everything from a row to the end
    end_of = np.zeros(rows, dtype=np.int64)
    for start in range(rows - 1, -1, -1):
        ends = np.arange(start + 1, min(rows, start + int(most[start])) + 1)
        total = (ends - start) * sizes[start] + OVERHEAD_TOKENS + cost[ends]
        best = int(np.argmin(total))
        cost[start], end_of[start] = total[best], ends[best]
    starts, start = [], 0
    while start < rows:
        starts.append(start)
        start = int(end_of[start])
    return starts
