"""What the formats of outputs can hold: types, which are known before anything runs, and single values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from daskinfer.ids import parse_json
from daskinfer.storage.columns.json_text import check_json, to_json_texts
from daskinfer.storage.columns.numpy import elements_of
from daskinfer.storage.columns.types import JSON, is_binary, is_fixed_binary, is_list

TABLE_FORMATS = ("parquet", "jsonl")
"""Formats of outputs whose parts are one file each, by their suffixes."""

_OTHERS = {
    "jsonl": "Write Parquet, which can: end output.url with .parquet, or leave the column out of output.keep.",
    "zarr": "Write Parquet, which can: end output.url with .parquet, or leave the column out of output.keep.",
    "parquet": "Leave the column out of output.keep.",
}


def holds(format: str, own: pa.DataType) -> bool:
    """Whether an output format can hold values of a type.

    Raises
    ------
    ValueError
        There is no such format.

    Examples
    --------
    >>> holds("parquet", pa.binary()), holds("jsonl", pa.binary()), holds("zarr", pa.binary())
    (True, False, False)
    """
    if format == "zarr":
        return elements_of(own) is not None
    if format == "jsonl":
        return _has_json(own)
    if format == "parquet":
        return not (pa.types.is_interval(own) or pa.types.is_union(own) or pa.types.is_run_end_encoded(own))
    raise ValueError(f"no output has the format {format!r}")


def advise(format: str) -> str:
    """Return what to do about a column that an output format cannot hold.

    Examples
    --------
    >>> advise("parquet")
    'Leave the column out of output.keep.'
    """
    return _OTHERS[format]


def find_misfits(table: pa.Table, format: str) -> dict[int, str]:
    """Return the rows with a value that an output format cannot hold, and why.

    Zarr has no nulls, and its lowest time means that there is none; JSON has no numbers that are not
    finite, and what is JSON text must be JSON. Parquet counts no whole seconds.

    Examples
    --------
    >>> find_misfits(pa.table({"price": [1.5, None, float("nan")]}), "zarr")
    {1: "column 'price': a null, which Zarr cannot hold"}
    >>> find_misfits(pa.table({"price": [1.5, None, float("nan")]}), "jsonl")
    {2: "column 'price': a number that is not finite, which JSON cannot hold"}
    """
    found: dict[int, str] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        for offset, why in _find_in(column, format):
            found.setdefault(offset, f"column '{name}': {why}")
    return found


def _find_in(column: pa.Array, format: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    if format == "zarr":
        found += _note(_has_nulls(column), "a null, which Zarr cannot hold")
    if format == "jsonl" and column.type == JSON:
        found += _note(np.array([not _is_json(text) for text in column.storage.to_pylist()], np.bool_), "not JSON")
    if format == "jsonl" and _may_be_infinite(column.type):
        found += _note(_is_infinite(column), "a number that is not finite, which JSON cannot hold")
    if format == "zarr" and _counts_time(column.type):
        lowest = pc.equal(column.view(pa.int64()), np.iinfo(np.int64).min)
        found += _note(_to_mask(lowest), "the lowest time of its unit, which numpy takes for none")
    if format == "parquet" and pa.types.is_timestamp(column.type) and column.type.unit == "s":
        found += _note(_overflows(column), "a time that Parquet, which counts milliseconds, cannot hold")
    return found


def _note(mask: NDArray[np.bool_], why: str) -> list[tuple[int, str]]:
    return [(offset, why) for offset in np.flatnonzero(mask).tolist()]


def _to_mask(values: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask


def _has_nulls(column: pa.Array) -> NDArray[np.bool_]:
    mask = _to_mask(column.is_null())
    if pa.types.is_fixed_size_list(column.type):
        mask = mask | np.array([_holds_null(column.slice(offset, 1)) for offset in range(len(column))], np.bool_)
    return mask


def _holds_null(row: pa.Array) -> bool:
    while pa.types.is_fixed_size_list(row.type) and not row.null_count:
        row = row.flatten()
    return bool(row.null_count)


def _may_be_infinite(own: pa.DataType) -> bool:
    if isinstance(own, pa.BaseExtensionType):
        return own != JSON and _may_be_infinite(own.storage_type)
    if pa.types.is_dictionary(own):
        return _may_be_infinite(own.value_type)
    if pa.types.is_nested(own):
        return any(_may_be_infinite(part) for part in _parts_of(own))
    return bool(pa.types.is_floating(own))


def _is_infinite(column: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_floating(column.type):
        return ~_to_mask(pc.fill_null(pc.is_finite(column.cast(pa.float64())), True))
    texts = to_json_texts(column)
    # A word in a text stands between quotes.
    return np.array([_has_word(text) for text in texts], np.bool_)


def _is_json(text: str | None) -> bool:
    try:
        if text is not None:
            parse_json(text)
            check_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_word(text: str) -> bool:
    if "NaN" not in text and "Infinity" not in text:
        return False
    found: list[Any] = []
    parse_json(text, parse_constant=found.append)
    return bool(found)


def _counts_time(own: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(own) or pa.types.is_duration(own))


def _overflows(column: pa.Array) -> NDArray[np.bool_]:
    limit = np.iinfo(np.int64).max // 1000
    ticks = column.view(pa.int64())
    return _to_mask(pc.or_(pc.greater(ticks, limit), pc.less(ticks, -limit)))


def _has_json(own: pa.DataType) -> bool:
    if own == JSON or isinstance(own, pa.UuidType):
        return True
    if isinstance(own, pa.BaseExtensionType):
        return _has_json(own.storage_type)
    if pa.types.is_dictionary(own):
        return _has_json(own.value_type)
    if pa.types.is_nested(own):
        return not pa.types.is_union(own) and all(_has_json(part) for part in _parts_of(own))
    return not (is_binary(own) or is_fixed_binary(own) or pa.types.is_interval(own))


def _parts_of(own: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_struct(own):
        return [field.type for field in own]
    if pa.types.is_map(own):
        return [own.key_type, own.item_type]
    if is_list(own):
        return [own.value_type]
    return [own.field(index).type for index in range(own.num_fields)]
