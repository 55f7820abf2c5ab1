"""Values of one type as values of another, exactly: a value that does not fit costs its row, never the others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskinfer.ids import parse_json
from daskinfer.storage.columns.json_text import check_json, to_json_texts
from daskinfer.storage.columns.types import JSON, describe_type, is_binary, is_text

Convert = Callable[[pa.Array], pa.Array]

_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.(\d{1,9}))?)?")
_FAR = re.compile(r"(?:[+-]\d{4,6}|\d{5,6})-\d\d-\d\d(?P<clock>[T ]\d\d:\d\d(:\d\d(\.(?P<digits>\d{1,9}))?)?)?")
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MISFITS = (pa.ArrowException, ValueError, OverflowError, RecursionError)
_NAMES = {type(None): "null", str: "a string", bool: "a boolean", list: "a list", dict: "an object"}


def describe(value: Any) -> str:
    """Return a value as an error message names it.

    Examples
    --------
    >>> describe(1.5), describe("a"), describe(None)
    ('the number 1.5', 'a string (a)', 'null')
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return f"the number {value:.25}" if isinstance(value, float) else f"the number {str(value)[:25]}"
    name = _NAMES.get(type(value), type(value).__name__)
    return name if value is None else f"{name} ({str(value)[:40]})"


def can_convert(own: pa.DataType, target: pa.DataType) -> bool:
    """Whether some values of one type can be values of another.

    Examples
    --------
    >>> can_convert(pa.string(), pa.int64()), can_convert(pa.list_(pa.int64()), pa.int64())
    (True, False)
    """
    try:
        _choose(own, target)(pa.nulls(0, own))
    except (pa.ArrowException, ValueError, TypeError):
        return False
    return True


def convert_column(
    values: pa.Array | pa.ChunkedArray, target: pa.DataType, column: str, errors: dict[int, str]
) -> pa.Array:
    r"""Return a column as values of a type; those that do not fit are noted in `errors` and null.

    Parameters
    ----------
    values
        Of a type for which `can_convert` says yes.
    target
        What is wanted. A text is read as such a value is written; a number must be the same number.
    column
        Its name, for the errors.
    errors
        Index of a value -> why it does not fit; the first error of a row stays.

    Examples
    --------
    >>> errors = {}
    >>> convert_column(pa.array(["1", "two", None]), pa.int64(), "count", errors).to_pylist()
    [1, None, None]
    >>> errors
    {1: 'column \'count\': expected int64, got "two"'}
    """
    convert = _choose(values.type, target)
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    found, first = [], 0
    for chunk in chunks:
        found += _convert_parts(chunk, convert, target, column, errors, first)
        first += len(chunk)
    return _join(found, target)


def parse_json_column(
    texts: Sequence[str | None], target: pa.DataType, column: str, errors: dict[int, str]
) -> pa.Array:
    """Return JSON texts as values of a type, as `convert_column` does; None and `null` are null.

    Examples
    --------
    >>> errors = {}
    >>> parse_json_column(["1", '"two"', "null"], pa.int64(), "count", errors).to_pylist()
    [1, None, None]
    >>> errors
    {1: "column 'count': expected int64, got a string (two)"}
    """
    read = _reader_of(target)
    found: list[str | None] = []
    for index, text in enumerate(texts):
        value = None
        if text is not None and text != "null":
            try:
                value = read(text)
            except RecursionError:
                errors.setdefault(index, f"column '{column}': it is nested too deep")
            except ValueError as error:
                errors.setdefault(index, f"column '{column}': {error}")
        found.append(value)
    if target == JSON:
        return pa.ExtensionArray.from_storage(JSON, pa.array(found, pa.string()))
    return convert_column(pa.array(found, pa.string()), target, column, errors)


def fits_float(text: str, value: float, is_narrow: bool = False) -> bool:
    """Whether a float says all the digits of the number that it was read from.

    Parameters
    ----------
    text
        The number as it is written.
    value
        The nearest float.
    is_narrow
        Whether it has fewer bits than a float64.

    Examples
    --------
    >>> fits_float("0.1", 0.1), fits_float("9007199254740993", 9007199254740993.0)
    (True, False)
    """
    if len(text) < 16 and 1e-300 < abs(value) < 1e300 and not is_narrow:
        return True
    try:
        number = Decimal(text)
    except InvalidOperation:
        return False
    if not math.isfinite(value) or not number.is_finite():
        return math.isfinite(value) == number.is_finite()
    digits = len(number.as_tuple().digits)
    return Decimal(f"{value:.{digits - 1}e}") == number


def _convert_parts(
    values: pa.Array, convert: Convert, target: pa.DataType, column: str, errors: dict[int, str], first: int
) -> list[pa.Array]:
    """Convert all, or halves of what does not go as a whole, down to the values that do not fit."""
    try:
        found = convert(values)
        found.validate(full=True)
    except _MISFITS as error:
        if len(values) > 1:
            half = len(values) // 2
            parts = _convert_parts(values.slice(0, half), convert, target, column, errors, first)
            return parts + _convert_parts(values.slice(half), convert, target, column, errors, first + half)
        with suppress(*_MISFITS):
            found = convert(_separate(values))
            found.validate(full=True)
            return [found]
        errors.setdefault(first, f"column '{column}': {_explain(error, values, target)}")
        return [pa.nulls(1, target)]
    return [found]


def _separate(value: pa.Array) -> pa.Array:
    """Return one value without what the rows around it hold, which is checked together with it otherwise."""
    if pa.types.is_dictionary(value.type):
        return value.dictionary_decode().dictionary_encode().cast(value.type)
    return value.take(pa.array([0]))


def _explain(error: Exception, values: pa.Array, target: pa.DataType) -> str:
    if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8"
    if values.type == target:
        return str(error)
    shown = to_json_texts(values)[0] if not is_binary(values.type) else "bytes"
    return f"expected {describe_type(target)}, got {shown[:60]}"


def _join(found: list[pa.Array], target: pa.DataType) -> pa.Array:
    if len(found) == 1:
        return found[0]
    return pa.concat_arrays(found) if found else pa.nulls(0, target)


def _choose(own: pa.DataType, target: pa.DataType) -> Convert:
    if pa.types.is_null(own):
        return lambda values: pa.nulls(len(values), target)
    if own == target:
        return lambda values: values.cast(target)
    if target == JSON:
        return _check_texts if is_text(own) else _write_json
    if is_text(target) and pa.types.is_temporal(own):
        return lambda values: _write_times(values, target)
    if is_text(own) and not is_text(target):
        return lambda values: _parse(values.cast(pa.string()), target)
    if is_binary(target) and pa.types.is_struct(own) and own.get_field_index("bytes") >= 0:
        return lambda values: pc.struct_field(values, "bytes").cast(target)
    if _is_number(own) and _is_number(target):
        return lambda values: _cast_number(values, target)
    return lambda values: values.cast(target)


def _is_number(own: pa.DataType) -> bool:
    return bool(pa.types.is_integer(own) or pa.types.is_floating(own) or pa.types.is_decimal(own))


def _cast_number(values: pa.Array, target: pa.DataType) -> pa.Array:
    found = values.cast(target)
    back = found.cast(values.type)
    if pa.types.is_float16(values.type):  # which Arrow does not compare
        back, values = back.cast(pa.float32()), values.cast(pa.float32())
    # Arrow looks only at some of the ways in which a number can become another one.
    same = pc.fill_null(pc.equal(back, values), True)
    if pa.types.is_floating(values.type):
        same = pc.or_(same, pc.fill_null(pc.is_nan(values.cast(pa.float64())), False))
    if not pc.all(same, min_count=0).as_py():
        raise ValueError("it is another number")
    return found


def _check_texts(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    for text in texts.to_pylist():
        if text is not None:
            parse_json(text)
            check_json(text)
    return pa.ExtensionArray.from_storage(JSON, texts)


def _write_json(values: pa.Array) -> pa.Array:
    texts = to_json_texts(values)
    for text in texts:
        check_json(text)
    mask = values.is_null().to_numpy(zero_copy_only=False)
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string(), mask=mask))


def _write_times(values: pa.Array, target: pa.DataType) -> pa.Array:
    texts = [parse_json(text) for text in to_json_texts(values)]
    return pa.array(texts, target)


def _parse(values: pa.Array, target: pa.DataType) -> pa.Array:
    """Return texts as the values that they write."""
    if pa.types.is_time(target):
        ticks = [None if text is None else _read_clock(text, target.unit) for text in values.to_pylist()]
        return pa.array(ticks, pa.int32() if target.bit_width == 32 else pa.int64()).cast(target)
    is_far = pa.types.is_date(target) or (pa.types.is_timestamp(target) and target.tz is None)
    if is_far and len(values) == 1 and (match := _FAR.fullmatch(values[0].as_py() or "")):
        return _read_far(match, target)
    if pa.types.is_integer(target) and pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
        raise ValueError("not in decimal digits")
    found = values.cast(target)
    if pa.types.is_floating(target):
        numbers = found.cast(pa.float64()).to_pylist()
        for text, number in zip(values.to_pylist(), numbers, strict=True):
            if text is not None and not fits_float(text, number, target != pa.float64()):
                raise ValueError("it has more digits than fit")
    return found


def _read_clock(text: str, unit: str) -> int:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError("not a time of day")
    hours, minutes, seconds, digits = match.groups()
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)
    ticks, rest = divmod(int((digits or "0").ljust(9, "0")), 10**9 // _TICKS[unit])
    if rest:
        raise ValueError("it has more digits than fit")
    return whole * _TICKS[unit] + ticks


def _read_far(match: re.Match[str], target: pa.DataType) -> pa.Array:
    """Return a time of a year of more than four digits, which Arrow does not read."""
    text = match[0].lstrip("+").replace(" ", "T")
    if pa.types.is_date(target):
        if match["clock"]:
            raise ValueError("it has a time of day")
        return pa.array([int(np.datetime64(text, "D").astype(np.int64))], pa.int32()).cast(pa.date32()).cast(target)
    digits = len(str(_TICKS[target.unit])) - 1
    if target.unit == "ns" or (match["digits"] or "")[digits:].strip("0"):
        raise ValueError("it has more digits than fit")
    return pa.array([int(np.datetime64(text, target.unit).astype(np.int64))], pa.int64()).cast(target)


def _reader_of(target: pa.DataType) -> Callable[[str], str]:
    """Return what turns a JSON text, not null, into the text that `convert_column` reads."""
    if target == JSON:
        return _read_any
    if _is_number(target):
        return partial(_read_number, target)
    if pa.types.is_boolean(target):
        return _read_boolean
    return _read_string


def _read_any(text: str) -> str:
    check_json(text)
    return text


def _read_number(target: pa.DataType, text: str) -> str:
    if text[0] in '"{[tfn':
        raise ValueError(f"expected {describe_type(target)}, got {describe(parse_json(text))}")
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text, text)


def _read_boolean(text: str) -> str:
    if text not in ("true", "false"):
        raise ValueError(f"expected bool, got {describe(parse_json(text))}")
    return text


def _read_string(text: str) -> str:
    value = parse_json(text)
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {describe(value)}")
    return convert_text(value)


def convert_text(value: Any) -> str:
    r"""Return what a task reads, which must be a string that UTF-8 can carry.

    Raises
    ------
    ValueError
        Where it is not, saying what it is.

    Examples
    --------
    >>> convert_text("grüße")
    'grüße'
    >>> convert_text("\ud800")
    Traceback (most recent call last):
        ...
    ValueError: holds a lone surrogate, which is not text
    """
    if value is None:
        raise ValueError("is null")
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {describe(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds a lone surrogate, which is not text") from error
    return value
