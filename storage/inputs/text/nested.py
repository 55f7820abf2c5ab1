"""Arrays as lines of text hold them: numbers, and nested lists of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskinfer.spec.rows import ArrayColumn
from daskinfer.storage.columns.values import describe


def infer_array(values: Iterable[Any]) -> ArrayColumn:
    """Return the most frequent shape, and the dtype that holds all values of that shape: bool, int64 or float64.

    Raises
    ------
    ValueError
        Where no value is an array.

    Examples
    --------
    >>> infer_array([[1, 2], [1.5, 2], [3]])
    ArrayColumn(dtype='float64', shape=(2,))
    """
    found: list[NDArray[Any]] = []
    why = "it is in no row"
    for value in values:
        try:
            found.append(_read_array(value))
        except ValueError as error:
            why = str(error)
    if not found:
        raise ValueError(why)
    ((shape, _),) = Counter(array.shape for array in found).most_common(1)
    dtype = np.result_type(*{array.dtype for array in found if array.shape == shape})
    return ArrayColumn(dtype=dtype.name, shape=shape)


def fit_array(column: ArrayColumn, value: Any) -> NDArray[Any]:
    """Return a value as a row of a column.

    Raises
    ------
    ValueError
        Where it has another shape or does not fit the dtype, saying what was expected and what came.

    Examples
    --------
    >>> fit_array(ArrayColumn(dtype="float64", shape=(2,)), [1, 2])
    array([1., 2.])
    >>> fit_array(ArrayColumn(dtype="float64", shape=(2,)), [1, 2, 3])
    Traceback (most recent call last):
        ...
    ValueError: expected an array of shape (2,), got one of shape (3,)
    """
    found = _read_array(value)
    if found.shape != column.shape:
        raise ValueError(f"expected an array of shape {column.shape}, got one of shape {found.shape}")
    if not np.can_cast(found.dtype, column.dtype):
        raise ValueError(f"expected {column.dtype}, got {found.dtype}")
    fitted = found.astype(column.dtype, copy=False)
    if found.dtype.kind == "i" and (fitted.astype(found.dtype) != found).any():
        raise ValueError(f"an integer has more digits than fit {column.dtype}")
    return fitted


def _read_array(value: Any) -> NDArray[Any]:
    try:
        found = np.array(value)
    except ValueError as error:
        raise ValueError("its lists have unequal lengths") from error
    if found.dtype.kind not in "bif":
        raise ValueError(f"expected numbers, got {describe(value)}")
    return found
