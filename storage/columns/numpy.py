"""Columns as Zarr holds them: numpy's types for Arrow's, and values from one to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from daskinfer.storage.columns.types import JSON, is_list, is_text

_UNITS = ("s", "ms", "us", "ns")


@dataclass(frozen=True, slots=True)
class Elements:
    """What the elements of a Zarr array are."""

    dtype: str
    """numpy's name, `string` for texts of any length."""
    shape: tuple[int, ...] = ()
    """Of one row."""

    @property
    def fill(self) -> Any:
        """What stands where there is no value: NaN, NaT, 0, False or ""."""
        if self.dtype == "string":
            return ""
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return np.nan
        return np.array("NaT", dtype)[()] if dtype.kind in "mM" else dtype.type(0)

    def empty(self, rows: int) -> NDArray[Any]:
        """Return so many rows without a value."""
        return np.full((rows, *self.shape), self.fill, object if self.dtype == "string" else self.dtype)


def elements_of(own: pa.DataType) -> Elements | None:
    """Return how Zarr holds values of an Arrow type exactly; None where it does not.

    Examples
    --------
    >>> elements_of(pa.list_(pa.float32(), 384))
    Elements(dtype='float32', shape=(384,))
    >>> elements_of(pa.list_(pa.float32())) is None
    True
    """
    shape: list[int] = []
    while pa.types.is_fixed_size_list(own):
        shape.append(own.list_size)
        own = own.value_type
    if pa.types.is_dictionary(own) and not is_text(own):
        own = own.value_type
    if is_text(own) or own == JSON:
        return None if shape else Elements("string")
    if pa.types.is_boolean(own) or pa.types.is_integer(own) or pa.types.is_floating(own):
        return Elements(np.dtype(own.to_pandas_dtype()).name, tuple(shape))
    if shape:
        return None
    if pa.types.is_date(own):
        return Elements("datetime64[D]")
    if pa.types.is_timestamp(own) and own.tz is None:
        return Elements(f"datetime64[{own.unit}]")
    if pa.types.is_duration(own):
        return Elements(f"timedelta64[{own.unit}]")
    return None


def type_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> pa.DataType | None:
    """Return the Arrow type that holds the elements of a Zarr array exactly; None where there is none.

    Examples
    --------
    >>> type_of(np.dtype("float32"), (2, 3))
    FixedSizeListType(fixed_size_list<item: fixed_size_list<item: float>[3]>[2])
    >>> type_of(np.dtype("complex64"), ()) is None
    True
    """
    own = _scalar_type_of(dtype)
    for size in reversed(shape):
        if own is None or is_text(own) or not size:
            return None
        own = pa.list_(own, size)
    return own


def to_arrow(values: NDArray[Any], own: pa.DataType) -> pa.Array:
    """Return (n, ...) values of numpy as an array of the type that `type_of` gives for them; NaT is null.

    Examples
    --------
    >>> to_arrow(np.array(["2026-01-31", "NaT"], "datetime64[D]"), pa.date32()).to_pylist()
    [datetime.date(2026, 1, 31), None]
    """
    if is_text(own) or own == JSON:
        texts = pa.array(values.tolist(), pa.string())
        return pa.ExtensionArray.from_storage(JSON, texts) if own == JSON else texts.cast(own)
    sizes, item = [], own
    while is_list(item):
        sizes.append(item.list_size)
        item = item.value_type
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind in "mM":
        column = _read_ticks(flat, item)
    elif pa.types.is_dictionary(item):
        column = pa.array(flat, item.value_type).cast(item)
    else:
        column = pa.array(flat.astype(flat.dtype.newbyteorder("=")), item)
    for size in reversed(sizes):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def to_numpy(values: pa.ChunkedArray, elements: Elements) -> NDArray[Any]:
    """Return values without nulls as numpy has them, (n, ...).

    Examples
    --------
    >>> pairs = pa.chunked_array([pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))])
    >>> to_numpy(pairs, elements_of(pairs.type)).shape
    (2, 2)
    """
    array = values.combine_chunks()
    if elements.dtype == "string":
        texts = array.storage if isinstance(array, pa.ExtensionArray) else array
        found = np.empty(len(texts), object)
        found[:] = texts.to_pylist()
        return found
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_date(array.type):
        array = array.cast(pa.date32())
    if pa.types.is_temporal(array.type):
        ticks = array.view(pa.int32() if pa.types.is_date(array.type) else pa.int64()).to_numpy()
        times: NDArray[Any] = ticks.astype(np.int64).view(elements.dtype)
        return times
    flat: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), *elements.shape)


def _scalar_type_of(dtype: np.dtype[Any]) -> pa.DataType | None:
    if dtype.kind in "UTO":
        return pa.string()
    if dtype.kind in "biuf" and dtype.itemsize <= 8:
        return pa.from_numpy_dtype(dtype.newbyteorder("="))
    if dtype.kind in "mM":
        unit, count = np.datetime_data(dtype)
        if count == 1 and unit in _UNITS:
            return pa.timestamp(unit) if dtype.kind == "M" else pa.duration(unit)
        if count == 1 and unit == "D" and dtype.kind == "M":
            return pa.date32()
    return None


def _read_ticks(flat: NDArray[Any], own: pa.DataType) -> pa.Array:
    missing = np.isnat(flat)
    ticks = np.where(missing, 0, flat.astype(flat.dtype.newbyteorder("=")).view(np.int64))
    if pa.types.is_date(own):
        return pa.array(ticks, pa.int64(), mask=missing).cast(pa.int32()).cast(pa.date32()).cast(own)
    return pa.array(ticks, pa.int64(), mask=missing).cast(own)
