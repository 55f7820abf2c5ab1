"""Distributions in fixed bins, so that those of parts add up to that of the whole, and how far two are apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from daskinfer.spec.comparison import Bar, Both

Bins = Mapping[int, tuple[int, int]]
"""Bin -> how many values of the current version and of the candidate are in it."""

_SIGN, _SHIFT = np.uint32(1 << 31), np.uint32(16)
_BARS = 24
_TAIL = 0.005  # of the values lies beyond each end of the bars


def count_bins(current: NDArray[np.float64], candidate: NDArray[np.float64]) -> dict[int, tuple[int, int]]:
    """Return how many values are in each bin.

    A bin holds the float32 numbers that have their first 16 bits in common (sign, exponent and 7 bits of mantissa),
    numbered from the lowest to the highest. It needs no range to be known before, and is never wider than 1/128 of
    what is in it.

    Parameters
    ----------
    current, candidate
        Finite values.

    Examples
    --------
    >>> sorted(count_bins(np.array([0.5, 0.5, 2.0]), np.array([0.5])).values())
    [(1, 0), (2, 1)]
    """
    mine, theirs = (np.unique(_bin(values), return_counts=True) for values in (current, candidate))
    before = dict(zip(mine[0].tolist(), mine[1].tolist(), strict=True))
    after = dict(zip(theirs[0].tolist(), theirs[1].tolist(), strict=True))
    return {number: (before.get(number, 0), after.get(number, 0)) for number in sorted({*before, *after})}


def measure_gap(bins: Bins) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic of binned values.

    It is the largest gap between the cumulative distributions at the ends of the bins, so never above that of the
    values themselves, and below it by no more than the share of values in one bin. 1 where only one side has values.

    Examples
    --------
    >>> measure_gap({1: (10, 0), 2: (0, 10)}), measure_gap({1: (10, 5), 2: (10, 5)})
    (1.0, 0.0)
    """
    counts = np.array([bins[number] for number in sorted(bins)], float).reshape(-1, 2)
    totals = counts.sum(axis=0)
    if not totals.all():
        return float(totals.any())
    before, after = (counts / totals).cumsum(axis=0).T
    return float(np.abs(before - after).max())


def measure_drift(counts: Collection[tuple[int, int]]) -> float:
    """Return the population stability index of two samples of categories, from the counts in each.

    Sum of (q - p) ln(q / p) over the categories, p and q being their shares: Kullback and Leibler's divergence, both
    ways. Half a row is added to every count, so that a category which one side lacks gives a finite figure. See
    Yurdakul, Statistical Properties of Population Stability Index, 2018, https://scholarworks.wmich.edu/dissertations/3208.

    Examples
    --------
    >>> measure_drift([(50, 50), (50, 50)])
    0.0
    >>> round(measure_drift([(90, 10), (10, 90)]), 3)
    3.412
    """
    from scipy.special import rel_entr  # as long to import as all else that planning takes

    if not counts:
        return 0.0
    smooth = np.array(list(counts), float) + 0.5
    before, after = (smooth / smooth.sum(axis=0)).T
    return float((rel_entr(before, after) + rel_entr(after, before)).sum())


def draw_bars(bins: Bins) -> tuple[Bar, ...]:
    """Return a distribution as a few slices of equal width between its tails; none where all values are one.

    Examples
    --------
    >>> values = np.linspace(0, 1, 1000)
    >>> bars = draw_bars(count_bins(values, values[:500]))
    >>> len(bars), sum(bar.rows.current for bar in bars), sum(bar.rows.candidate for bar in bars)
    (24, 1000, 500)
    """
    numbers = sorted(bins)
    counts = np.array([bins[number] for number in numbers], float).reshape(-1, 2)
    if len(numbers) < 2:
        return ()
    edges = _find_values(np.array([*numbers, numbers[-1] + 1], np.uint32))
    middles = edges[:-1] / 2 + edges[1:] / 2
    together = (counts / np.maximum(counts.sum(axis=0), 1)).sum(axis=1).cumsum()
    first, last = np.searchsorted(together, np.array([_TAIL, 1 - _TAIL]) * together[-1]).tolist()
    ends = np.linspace(edges[first], edges[last + 1], _BARS + 1)
    places = np.clip(np.searchsorted(ends, middles, side="right") - 1, 0, _BARS - 1)
    sums = [np.bincount(places, column, minlength=_BARS).astype(int).tolist() for column in counts.T]
    return tuple(
        Bar(low=low, high=high, rows=Both[int](current=before, candidate=after))
        for low, high, before, after in zip(ends[:-1].tolist(), ends[1:].tolist(), *sums, strict=True)
    )


def _bin(values: NDArray[np.float64]) -> NDArray[np.uint32]:
    limit = np.finfo(np.float32).max
    bits = (np.clip(values, -limit, limit).astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    # As unsigned integers these are in the order of the numbers.
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ordered >> _SHIFT


def _find_values(bins: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the lower ends of bins."""
    ordered = bins << _SHIFT
    bits = np.where(ordered & _SIGN, ordered & ~_SIGN, ~ordered)
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(bits.view(np.float32).astype(np.float64), nan=limit, posinf=limit, neginf=-limit)
