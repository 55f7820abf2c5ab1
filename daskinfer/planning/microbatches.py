"""Packing rows into microbatches. What shares a microbatch decides bits, so this is a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daskinfer.spec.rows import Microbatch


def pack_microbatches(lengths: Sequence[int] | np.ndarray, tokens: int) -> tuple[Microbatch, ...]:
    """Sort rows by length, longest first, and cut them where the padded size would exceed `tokens`.

    A row longer than `tokens` travels alone. Rows of equal length keep their order, so equal lengths always
    give equal microbatches.

    Parameters
    ----------
    lengths
        Length of every row in tokens, shape (rows,).
    tokens
        Most padded tokens of a microbatch with more than one row.

    Returns
    -------
    tuple of Microbatch
        Every row in exactly one microbatch.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    packed = []
    start = 0
    while start < len(order):
        longest = int(sizes[order[start]])
        rows = order[start : start + max(1, tokens // max(1, longest))]
        packed.append(Microbatch(rows=tuple(rows.tolist()), length=longest))
        start += len(rows)
    return tuple(packed)
