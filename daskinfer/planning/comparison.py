"""Two versions' outputs for the same rows, compared: part by part, and the parts put together."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskinfer.planning.histograms import count_bins
from daskinfer.spec.comparison import Both, FieldSums, PartComparison, RowDifference
from daskinfer.spec.job.record import OutputField

_FLOATS = ("float32", "float64")
_LABELS = 1000
_FURTHEST = 5
_AT_ONCE = 1 << 20  # values, so that temporaries stay small beside the part
_LARGEST = float(np.finfo(np.float64).max)


class Rows(Protocol):
    """Some rows of an output, such as a part of it."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Number in the input of every row that has a result, (n,) ascending."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Column -> (n, ...) values."""


def is_vector(field: OutputField) -> bool:
    """Whether a column has a vector, or a matrix, of floats for every row.

    Examples
    --------
    >>> is_vector(OutputField(name="embedding", kind="float32", shape=(384,)))
    True
    >>> is_vector(OutputField(name="label", kind="string"))
    False
    """
    return bool(field.shape) and field.kind in _FLOATS


def is_text(field: OutputField) -> bool:
    """Whether a column of strings holds texts, which hardly come twice, not labels.

    Examples
    --------
    >>> is_text(OutputField(name="text", kind="string")), is_text(OutputField(name="label", kind="string"))
    (True, False)
    """
    return field.kind == "string" and field.name == "text"


def compare_parts(current: Rows, candidate: Rows, fields: Sequence[OutputField], tolerance: float) -> PartComparison:
    """Compare what two versions gave for the rows of one partition.

    Rows are told by their number; one that was refused on one side only is counted, and nothing else.

    Parameters
    ----------
    current, candidate
        What they gave.
    fields
        Columns to compare; both have them.
    tolerance
        Floats are close where |candidate - current| <= tolerance * max(1, |current|), or where they are the same, NaN and
        infinities included. Everything else is close only where it is the same.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> score = OutputField(name="score", kind="float32")
    >>> before = SimpleNamespace(rows=np.array([0, 1, 2]), arrays={"score": np.float32([1, 2, 3])})
    >>> after = SimpleNamespace(rows=np.array([0, 1]), arrays={"score": np.float32([1, 2.5])})
    >>> found = compare_parts(before, after, [score], tolerance=1e-3)
    >>> found.rows, found.current_only, found.fields[0].close, found.fields[0].largest_difference
    (2, 1, 1, 0.5)
    """
    rows, left, right = np.intersect1d(current.rows, candidate.rows, assume_unique=True, return_indices=True)
    sums = []
    for field in fields:
        step = max(1, _AT_ONCE // max(1, prod(field.shape)))
        found = FieldSums(field=field)
        for start in range(0, len(rows), step):
            chosen = slice(start, start + step)
            before = current.arrays[field.name][left[chosen]]
            after = candidate.arrays[field.name][right[chosen]]
            compare = _compare_strings if field.kind == "string" else _compare_numbers
            found = _merge_fields(found, compare(field, rows[chosen], before, after, tolerance))
        sums.append(found)
    return PartComparison(
        tolerance=tolerance,
        rows=len(rows),
        current_only=len(current.rows) - len(rows),
        candidate_only=len(candidate.rows) - len(rows),
        fields=tuple(sums),
    )


def merge_parts(parts: Iterable[PartComparison]) -> PartComparison:
    """Return the comparison of several parts together; their order changes at most the last bits of sums of floats.

    Parameters
    ----------
    parts
        At least one.

    Raises
    ------
    ValueError
        They are of different columns or tolerances.

    Examples
    --------
    >>> part = PartComparison(tolerance=0.0, rows=10, current_only=1, candidate_only=0, fields=())
    >>> merge_parts([part, part]).rows
    20
    """
    return reduce(_merge, parts)


def _merge(one: PartComparison, other: PartComparison) -> PartComparison:
    if one.tolerance != other.tolerance:
        raise ValueError(f"parts were compared with tolerances {one.tolerance} and {other.tolerance}")
    return PartComparison(
        tolerance=one.tolerance,
        rows=one.rows + other.rows,
        current_only=one.current_only + other.current_only,
        candidate_only=one.candidate_only + other.candidate_only,
        fields=tuple(_merge_fields(*pair) for pair in zip(one.fields, other.fields, strict=True)),
    )


def _merge_fields(one: FieldSums, other: FieldSums) -> FieldSums:
    if one.field != other.field:
        raise ValueError(f"parts have different columns: {one.field} and {other.field}")
    labels = None if one.labels is None or other.labels is None else _add(one.labels, other.labels)
    return FieldSums(
        field=one.field,
        rows=one.rows + other.rows,
        equal=one.equal + other.equal,
        close=one.close + other.close,
        pairs=one.pairs + other.pairs,
        difference=_clip(one.difference + other.difference),
        largest_difference=max(one.largest_difference, other.largest_difference),
        cosine=one.cosine + other.cosine,
        least_cosine=min(one.least_cosine, other.least_cosine),
        nan=_add_counts(one.nan, other.nan),
        infinite=_add_counts(one.infinite, other.infinite),
        broken=one.broken + other.broken,
        counted=_add_counts(one.counted, other.counted),
        total=Both[float](
            current=_clip(one.total.current + other.total.current),
            candidate=_clip(one.total.candidate + other.total.candidate),
        ),
        bins=_add(one.bins, other.bins),
        labels=_drop_texts(labels),
        furthest=_choose_furthest((*one.furthest, *other.furthest)),
    )


def _compare_strings(
    field: OutputField, rows: NDArray[np.int64], current: NDArray[Any], candidate: NDArray[Any], tolerance: float
) -> FieldSums:
    before, after = (values.astype(object).reshape(len(rows), -1) for values in (current, candidate))
    same = (before == after).astype(bool).all(axis=1)
    counts = [Counter(values.ravel().tolist()) for values in (before, after)]
    lengths = [float(sum(len(text) * count for text, count in counter.items())) for counter in counts]
    labels = {text: (counts[0][text], counts[1][text]) for text in sorted({*counts[0], *counts[1]})}
    return FieldSums(
        field=field,
        rows=len(rows),
        equal=int(same.sum()),
        close=int(same.sum()),
        counted=Both[int](current=before.size, candidate=after.size),
        total=Both[float](current=lengths[0], candidate=lengths[1]),
        labels=None if is_text(field) else _drop_texts(labels),
        furthest=_choose_furthest(RowDifference(row=row, difference=None) for row in rows[~same].tolist()),
    )


def _compare_numbers(
    field: OutputField, rows: NDArray[np.int64], current: NDArray[Any], candidate: NDArray[Any], tolerance: float
) -> FieldSums:
    before, after = (values.reshape(len(rows), -1) for values in (current, candidate))
    same = before == after
    before, after = before.astype(np.float64), after.astype(np.float64)
    same |= np.isnan(before) & np.isnan(after)
    known = np.isfinite(before), np.isfinite(after)
    finite = known[0] & known[1]
    with np.errstate(over="ignore"):
        difference = np.abs(np.subtract(after, before, where=finite, out=np.zeros_like(before)))
        difference = np.minimum(difference, _LARGEST)
    close = same.copy()
    if field.kind in _FLOATS:
        with np.errstate(over="ignore"):
            close |= finite & (
                difference <= tolerance * np.abs(before, where=finite, out=np.ones_like(before)).clip(1.0)
            )
    comparable = (finite | same).all(axis=1)
    cosines = _measure_cosines(before, after, finite, same, comparable) if is_vector(field) else np.ones(0)
    distances = np.where(comparable, difference.max(axis=1, initial=0.0), np.inf)
    changed = ~close.all(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        totals = [_clip(values[there].sum()) for values, there in zip((before, after), known, strict=True)]
        apart = _clip(difference.sum())
    return FieldSums(
        field=field,
        rows=len(rows),
        equal=int(same.all(axis=1).sum()),
        close=int((~changed).sum()),
        pairs=int(finite.sum()),
        difference=apart,
        largest_difference=float(difference.max(initial=0.0)),
        cosine=float(cosines.sum()),
        least_cosine=float(cosines.min(initial=1.0)),
        nan=Both[int](current=int(np.isnan(before).sum()), candidate=int(np.isnan(after).sum())),
        infinite=Both[int](current=int(np.isinf(before).sum()), candidate=int(np.isinf(after).sum())),
        broken=int((known[0] & ~known[1]).any(axis=1).sum()),
        counted=Both[int](current=int(known[0].sum()), candidate=int(known[1].sum())),
        total=Both[float](current=totals[0], candidate=totals[1]),
        bins={} if field.shape else count_bins(before[known[0]], after[known[1]]),
        furthest=_choose_furthest(
            RowDifference(row=row, difference=None if np.isinf(distance) else distance)
            for row, distance in zip(rows[changed].tolist(), distances[changed].tolist(), strict=True)
        ),
    )


def _measure_cosines(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    finite: NDArray[np.bool_],
    same: NDArray[np.bool_],
    comparable: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the cosine of every row's two vectors, (n,).

    Exactly 1 where they are the same. 0 where one is zero, or where one has NaN or infinity and the other has not: such
    a vector is near to nothing. What is NaN or infinite in both alike is left out.
    """
    one, other = (_scale(np.where(finite, values, 0.0)) for values in (before, after))
    dots = np.einsum("ij,ij->i", one, other)
    norms = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    cosines: NDArray[np.float64] = np.divide(dots, norms, where=norms > 0, out=np.zeros_like(dots)).clip(-1.0, 1.0)
    cosines[~comparable] = 0.0
    cosines[same.all(axis=1)] = 1.0
    return cosines


def _scale(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors whose largest value is 1, so that no square overflows."""
    largest = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(vectors, largest, where=largest > 0, out=np.zeros_like(vectors))
    return scaled


def _choose_furthest(found: Iterable[RowDifference]) -> tuple[RowDifference, ...]:
    return tuple(heapq.nsmallest(_FURTHEST, found, key=_order))


def _order(found: RowDifference) -> tuple[bool, float, int]:
    return found.difference is not None, -(found.difference or 0.0), found.row


def _drop_texts(labels: dict[str, tuple[int, int]] | None) -> dict[str, tuple[int, int]] | None:
    return None if labels is None or len(labels) > _LABELS else labels


def _add(one: Mapping[Any, tuple[int, int]], other: Mapping[Any, tuple[int, int]]) -> dict[Any, tuple[int, int]]:
    keys = sorted({*one, *other})
    pairs = ((one.get(key, (0, 0)), other.get(key, (0, 0))) for key in keys)
    return {key: (a + c, b + d) for key, ((a, b), (c, d)) in zip(keys, pairs, strict=True)}


def _add_counts(one: Both[int], other: Both[int]) -> Both[int]:
    return Both[int](current=one.current + other.current, candidate=one.candidate + other.candidate)


def _clip(value: float) -> float:
    """Return the value, or what JSON can say instead: a sum may leave the range of floats."""
    return float(np.nan_to_num(value))
