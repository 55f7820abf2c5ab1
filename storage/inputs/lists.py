"""Arrays as arrow holds them: numbers, lists of them, fixed-size lists, tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from daskinfer.spec.rows import ArrayColumn

Dims = tuple[int | None, ...]


def describe_array(own: pa.DataType) -> tuple[np.dtype[Any], Dims] | None:
    """Return dtype and shape of a row of numbers, None for lengths that the type leaves open; None for other types.

    Examples
    --------
    >>> describe_array(pa.list_(pa.list_(pa.float32(), 3)))
    (dtype('float32'), (None, 3))
    >>> describe_array(pa.string()) is None
    True
    """
    dims: list[int | None] = []
    if isinstance(own, pa.FixedShapeTensorType) and own.permutation in (None, [*range(len(own.shape))]):
        dims, own = list(own.shape), own.value_type
    while pa.types.is_fixed_size_list(own) or pa.types.is_list(own) or pa.types.is_large_list(own):
        dims.append(own.list_size if pa.types.is_fixed_size_list(own) else None)
        own = own.value_type
    if not (pa.types.is_integer(own) or pa.types.is_floating(own) or pa.types.is_boolean(own)):
        return None
    return np.dtype(own.to_pandas_dtype()), tuple(dims)


def count_shapes(values: pa.ChunkedArray) -> Counter[tuple[int, ...]]:
    """Return how many rows have each shape; those that have none are not counted.

    Examples
    --------
    >>> count_shapes(pa.chunked_array([[[1, 2], [3, 4], [5], None]]))
    Counter({(2,): 2, (1,): 1})
    """
    return Counter(shape for row in _rows_of(values) if (shape := _shape_of(row)) is not None)


def to_numpy(values: pa.ChunkedArray, column: ArrayColumn, errors: dict[int, str]) -> NDArray[Any]:
    """Return the rows as (n, ...); those of another shape, or with nulls, are noted in `errors` and zero.

    Examples
    --------
    >>> errors = {}
    >>> to_numpy(pa.chunked_array([[[1, 2], [5]]]), ArrayColumn(dtype="int64", shape=(2,)), errors)
    array([[1, 2],
           [0, 0]])
    >>> errors
    {1: 'expected an array of shape (2,), got one of shape (1,)'}
    """
    if pa.types.is_null(values.type):
        errors |= dict.fromkeys(range(len(values)), "is null")
        return np.zeros((len(values), *column.shape), column.dtype)
    whole = values.combine_chunks()
    if _has_shape(whole, column.shape):
        return _flatten(whole).astype(column.dtype, copy=False).reshape(len(whole), *column.shape)
    found = np.zeros((len(whole), *column.shape), column.dtype)
    for offset, row in enumerate(_rows_of(values)):
        if _has_shape(row, column.shape):
            found[offset] = _flatten(row).reshape(column.shape)
            continue
        shape = _shape_of(row)
        expected = f"expected an array of shape {column.shape}"
        got = "one with nulls or lists of unequal lengths" if shape is None else f"one of shape {shape}"
        errors[offset] = "is null" if row.null_count else f"{expected}, got {got}"
    return found


def _rows_of(values: pa.ChunkedArray) -> list[pa.Array]:
    return [chunk.slice(offset, 1) for chunk in values.chunks for offset in range(len(chunk))]


def _has_shape(values: pa.Array, shape: tuple[int, ...]) -> bool:
    return len(values) == 0 or _shape_of(values) == shape


def _shape_of(values: pa.Array) -> tuple[int, ...] | None:
    """Return the one shape that all rows have, None where they differ or there is a null."""
    if isinstance(values, pa.FixedShapeTensorArray):
        return None if values.storage.flatten().null_count or values.null_count else tuple(values.type.shape)
    shape: list[int] = []
    while pa.types.is_nested(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            return None
        shape += lengths or [0]
        values = values.flatten()
    return None if values.null_count else tuple(shape)


def _flatten(values: pa.Array) -> NDArray[Any]:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while pa.types.is_nested(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
