"""Sizes, structures and operations as functions of rows and length, fitted to what was traced at a few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskinfer.models.splitting.structure import Unsupported
from daskinfer.models.splitting.tracing import Call, Trace
from daskinfer.spec.outline import Dim, TensorSpec

# Rows and lengths that tell a constant from a multiple of either or both; the last one checks the others.
SHAPES = ((2, 11), (3, 11), (2, 14), (3, 14), (5, 17))
# Models whose rows have one length: only the number of rows differs.
FIXED_SHAPES = ((2, 1), (3, 1), (5, 1))

Shapes = Sequence[tuple[int, int]]
"""(rows, length) of every trace."""


def fit_tensors(seen: Sequence[Call | Trace], shapes: Shapes) -> tuple[TensorSpec, ...]:
    """Return what the tensors of a call or of the whole forward look like in any microbatch.

    Raises
    ------
    Unsupported
        Where their sizes do not follow from rows and length, or their number or type depends on the input.

    Examples
    --------
    >>> from daskinfer.models.splitting.tracing import Call
    >>> calls = [Call("layer.0", frozenset(), 0, [(rows, 4)], ["float32"]) for rows, _ in FIXED_SHAPES]
    >>> fit_tensors(calls, FIXED_SHAPES)[0].dims
    ((0, 1, 0, 0), (4, 0, 0, 0))
    """
    if any(len(each.dtypes) != len(seen[0].dtypes) for each in seen):
        raise Unsupported("the number of its outputs depends on the input")
    return tuple(
        fit_tensor([each.dtypes[position] for each in seen], [each.shapes[position] for each in seen], shapes)
        for position in range(len(seen[0].dtypes))
    )


def fit_tensor(dtypes: Sequence[str], sizes: Sequence[tuple[int, ...]], shapes: Shapes) -> TensorSpec:
    """Return what one tensor looks like in any microbatch; see `fit_tensors`.

    Examples
    --------
    >>> shapes = SHAPES[:4]
    >>> fit_tensor(["float32"] * 4, [(rows, length, 384) for rows, length in shapes], shapes).dims
    ((0, 1, 0, 0), (0, 0, 1, 0), (384, 0, 0, 0))
    """
    if any(dtype != dtypes[0] for dtype in dtypes) or any(len(size) != len(sizes[0]) for size in sizes):
        raise Unsupported("the type or the number of dimensions of an output depends on the input")
    return TensorSpec(dtype=dtypes[0], dims=tuple(_fit(size, shapes) for size in zip(*sizes, strict=True)))


def fit_structure(structures: Sequence[Any], shapes: Shapes) -> Any:
    """Return how an output nests in any microbatch; see `structure.flatten`.

    Raises
    ------
    Unsupported
        Where it depends on the input.

    Examples
    --------
    >>> fit_structure([["tuple", 0, ["number", rows]] for rows, _ in FIXED_SHAPES], FIXED_SHAPES)
    ['tuple', 0, ['number', (0, 1, 0, 0)]]
    """
    first = structures[0]
    if any(type(structure) is not type(first) for structure in structures):
        raise Unsupported("what its outputs are depends on the input")
    if isinstance(first, list) and first and first[0] == "number":
        return ["number", _fit([structure[1] for structure in structures], shapes)]
    if isinstance(first, list):
        if any(len(structure) != len(first) for structure in structures):
            raise Unsupported("the number of its outputs depends on the input")
        return [fit_structure(parts, shapes) for parts in zip(*structures, strict=True)]
    if isinstance(first, dict):
        if any(structure.keys() != first.keys() for structure in structures):
            raise Unsupported("the number of its outputs depends on the input")
        return {key: fit_structure([structure[key] for structure in structures], shapes) for key in first}
    if any(structure != first for structure in structures):
        raise Unsupported("an output that is no tensor depends on the input")
    return first


def fit_flops(traces: Sequence[Trace], shapes: Shapes, begin: int, end: int | None) -> tuple[int, int]:
    """Return the operations of calls [begin, end) for a row of L tokens, first * L + second * L**2.

    Where lengths are fixed it is `first` alone. `end` is None for all calls that follow.

    Examples
    --------
    >>> from daskinfer.models.splitting.tracing import Call, Trace
    >>> traces = [Trace([Call("layer.0", frozenset(), 0, [], [], flops=10 * rows)]) for rows, _ in FIXED_SHAPES]
    >>> fit_flops(traces, FIXED_SHAPES, 0, None)
    (10, 0)
    """

    def measure(number: int) -> float:
        trace, (rows, _) = traces[number], shapes[number]
        is_last = end is None or end == len(trace.calls)
        return (sum(call.flops for call in trace.calls[begin:end]) + is_last * trace.trailing_flops) / rows

    if shapes is FIXED_SHAPES:
        return round(measure(0)), 0
    short, long = shapes[0][1], shapes[2][1]
    square = max(0.0, (measure(2) / long - measure(0) / short) / (long - short))
    return max(0, round(measure(0) / short - square * short)), round(square)


def _fit(values: Sequence[int], shapes: Shapes) -> Dim:
    """Return a size as a function of rows and length."""
    terms = [(1, rows, length, rows * length) for rows, length in shapes]
    if shapes is FIXED_SHAPES:
        terms = [(1, rows, 0, 0) for rows, _ in shapes]
    found = (
        np.rint(np.linalg.lstsq(np.array(terms, float), np.array(values, float), rcond=None)[0]).astype(int).tolist()
    )
    if any(sum(map(int.__mul__, term, found)) != value for term, value in zip(terms, values, strict=True)):
        raise Unsupported("the size of an output does not follow from the number of rows and their length")
    return (found[0], found[1], found[2], found[3])
