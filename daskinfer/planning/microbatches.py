"""Packing rows into microbatches. What shares a microbatch decides bits, so this is a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daskinfer.spec.rows import Microbatch

# What a microbatch costs beside its tokens (graph, scheduling, hand-off), in tokens of a small encoder.
OVERHEAD_TOKENS = 32


def pack_microbatches(lengths: Sequence[int] | np.ndarray, tokens: int) -> tuple[Microbatch, ...]:
    """Sort rows by length, longest first, and cut them so that padding and the number of microbatches cost least.

    The cuts minimise the sum of padded tokens and `OVERHEAD_TOKENS` a microbatch, by dynamic programming over the
    sorted rows. Rows of equal length keep their order, so equal lengths always give equal microbatches.

    Parameters
    ----------
    lengths
        Length of every row in tokens, shape (rows,).
    tokens
        Most padded tokens of a microbatch; a row longer than that travels alone.

    Returns
    -------
    tuple of Microbatch
        Every row in exactly one microbatch.
    """
    sizes = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-sizes, kind="stable")
    starts = _choose_cuts(sizes[order], tokens)
    ends = [*starts, len(order)][1:]
    return tuple(
        Microbatch(rows=tuple(order[start:end].tolist()), length=int(sizes[order[start]]))
        for start, end in zip(starts, ends, strict=True)
    )


def _choose_cuts(sizes: np.ndarray, tokens: int) -> list[int]:
    """Return where each microbatch of the falling `sizes` begins."""
    rows = len(sizes)
    most = np.maximum(1, tokens // sizes)
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
