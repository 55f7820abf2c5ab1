"""Values of Arrow arrays as JSON text, exactly: no value passes through a Python object that could not hold it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskinfer.storage.columns.types import JSON, is_binary, is_fixed_binary, is_list, is_text

_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR = re.compile(r"(-?)(\d+)-")
_DEEPEST = 500
_NESTING = re.compile(r"\"(?:[^\"\\]|\\.)*\"?|[\[\]{}]", re.DOTALL)
_NOT_JSON = ("NaN", "Infinity")
_BLANKS = re.compile(r"[ \t\r\n]*")
# Nearly all keys have no escapes; the others are left to the decoder.
_KEY = re.compile(r'[ \t\r\n]*"([^"\\\x00-\x1f]*)"[ \t\r\n]*:[ \t\r\n]*')
_AFTER_VALUE = re.compile(r"[ \t\r\n]*([,}])")


def to_json_texts(values: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return every value as JSON text.

    Integers and decimals are numbers with all their digits, floats numbers with the fewest digits that give the same
    float64 again, what is not finite `NaN`, `Infinity` or `-Infinity`, which is not JSON. Times are text as ISO 8601 has
    them, in UTC where they have a zone. Maps are lists of pairs. Bytes are text that says how many there are, which no
    output keeps. Text that is not UTF-8 shows where by U+FFFD.

    Examples
    --------
    >>> to_json_texts(pa.array([1.0, float("nan"), None]))
    ['1.0', 'NaN', 'null']
    >>> to_json_texts(pa.array([0], pa.timestamp("ms", "UTC")))
    ['"1970-01-01T00:00:00.000Z"']
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    texts = _write(array)
    if array.null_count and not pa.types.is_null(array.type):
        for index in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            texts[index] = "null"
    return texts


def _write(array: pa.Array) -> list[str]:
    own = array.type
    if own == JSON:
        # A line of jsonl ends where its value does; outside of strings, JSON takes line ends for blanks.
        return [(text or "null").replace("\r", " ").replace("\n", " ") for text in array.storage.to_pylist()]
    if isinstance(own, pa.FixedShapeTensorType):
        return _write_tensors(array)
    if isinstance(own, pa.UuidType):
        return [json.dumps(str(value)) for value in array.to_pylist()]
    if isinstance(own, pa.BaseExtensionType):
        return to_json_texts(array.storage)
    if pa.types.is_dictionary(own):
        return to_json_texts(array.dictionary_decode())
    if pa.types.is_run_end_encoded(own):
        return to_json_texts(pc.run_end_decode(array))
    if pa.types.is_null(own):
        return ["null"] * len(array)
    if is_text(own):
        return [json.dumps(text, ensure_ascii=False) for text in _read_texts(array)]
    if is_binary(own) or is_fixed_binary(own):
        return [f'"{size or 0:,} bytes"' for size in pc.binary_length(array.cast(pa.large_binary())).to_pylist()]
    if pa.types.is_boolean(own):
        return ["true" if value else "false" for value in array.to_pylist()]
    if pa.types.is_floating(own):
        return _write_floats(array)
    if pa.types.is_nested(own):
        return _write_nested(array)
    return _write_scalars(array)


def _write_scalars(array: pa.Array) -> list[str]:
    own = array.type
    if pa.types.is_timestamp(own) or pa.types.is_date(own) or pa.types.is_duration(own):
        numbers = array.view(pa.int32() if own == pa.date32() else pa.int64()).fill_null(0).to_numpy()
        if pa.types.is_duration(own):
            return [_write_duration(int(value), _TICKS[own.unit]) for value in numbers]
        return _write_times(numbers.astype(np.int64), own)
    if pa.types.is_time(own):
        return [f'"{text}"' for text in array.cast(pa.string()).to_pylist()]
    if pa.types.is_integer(own) or pa.types.is_decimal(own):
        return array.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    raise ValueError(f"{own} has no form in JSON")


def _write_floats(array: pa.Array) -> list[str]:
    values = array.cast(pa.float64())
    texts = values.cast(pa.string())
    # A float stays a float, and the sign of a zero its own, for those who read numbers by how they look.
    whole = pc.match_substring_regex(texts, r"^-?\d+$")
    found: list[str] = pc.if_else(whole, pc.binary_join_element_wise(texts, ".0", ""), texts).to_pylist()
    for index in np.flatnonzero(~np.isfinite(values.fill_null(0).to_numpy(zero_copy_only=False))).tolist():
        value = values[index].as_py()
        found[index] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return found


def _write_times(numbers: np.ndarray[Any, Any], own: pa.DataType) -> list[str]:
    if pa.types.is_date(own):
        days = numbers if own == pa.date32() else numbers // 86_400_000
        texts, zone = np.datetime_as_string(days.astype("M8[D]")), ""
    else:
        # numpy takes the lowest count for none: its text is that of the next one with a last digit less by one.
        lowest = numbers == np.iinfo(np.int64).min
        texts, zone = np.datetime_as_string((numbers + lowest).view(f"M8[{own.unit}]")), "Z" if own.tz else ""
        for index in np.flatnonzero(lowest).tolist():
            texts[index] = f"{texts[index][:-1]}{int(texts[index][-1]) - 1}"
    # ISO 8601 wants four digits of a year, and a sign where there are more; numpy gives negative years fewer.
    return [f'"{_YEAR.sub(_write_year, text, count=1)}{zone}"' for text in texts.tolist()]


def _write_year(match: re.Match[str]) -> str:
    sign = match[1] or ("+" if len(match[2]) > 4 else "")
    return f"{sign}{match[2]:0>4}-"


def _write_duration(value: int, ticks: int) -> str:
    seconds, rest = divmod(abs(value), ticks)
    digits = f".{rest:0{len(str(ticks)) - 1}d}" if rest else ""
    return f'"{"-" * (value < 0)}PT{seconds}{digits}S"'


def _write_nested(array: pa.Array) -> list[str]:
    own = array.type
    if pa.types.is_struct(own):
        keys = [json.dumps(field.name, ensure_ascii=False) for field in own]
        parts = [to_json_texts(part) for part in array.flatten()]
        rows = zip(*parts, strict=True) if parts else [()] * len(array)
        return ["{" + ",".join(f"{key}:{value}" for key, value in zip(keys, row, strict=True)) + "}" for row in rows]
    if pa.types.is_map(own):
        pair = pa.struct([("key", own.key_type), ("value", own.item_type)])
        pairs = array.cast(pa.list_(pair))
        keys, values = (to_json_texts(part) for part in pairs.flatten().flatten())
        return _group([f"[{key},{value}]" for key, value in zip(keys, values, strict=True)], pairs)
    if is_list(own):
        return _group(to_json_texts(array.flatten()), array)
    raise ValueError(f"{own} has no form in JSON")


def _group(entries: list[str], lists: pa.Array) -> list[str]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    left = iter(entries)
    return [f"[{','.join(islice(left, length))}]" for length in lengths]


def _write_tensors(array: pa.Array) -> list[str]:
    entries = to_json_texts(array.storage.flatten())
    for size in reversed(array.type.shape):
        left = iter(entries)
        entries = [f"[{','.join(islice(left, size))}]" for _ in range(len(entries) // size)]
    left = iter(entries)
    return [next(left) if valid else "null" for valid in array.is_valid().to_pylist()]


def _read_texts(array: pa.Array) -> list[str]:
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        values = array.cast(pa.large_binary()).to_pylist()
        return [(value or b"").decode(errors="replace") for value in values]


def describe_row(table: pa.Table, index: int) -> str:
    """Return a row as JSON text, bytes as their number.

    Examples
    --------
    >>> describe_row(pa.table({"text": ["é"], "image": [b"abc"]}), 0)
    '{"text": "é", "image": "3 bytes"}'
    """
    row = {name: to_json_texts(table.column(name).slice(index, 1))[0] for name in table.column_names}
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in row.items()) + "}"


def parse_json(text: str) -> Any:
    """Return a JSON text as a value by which texts can be compared: 1.10 is 1.1, and 1.0 is 1.

    Examples
    --------
    >>> parse_json("[1.10, 1.0]") == parse_json("[1.1, 1]")
    True
    """
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def scan_object(text: str, wanted: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a JSON object, and the text of some of them as it stands there.

    Raises
    ------
    ValueError
        Where it is no JSON object that Python can read, or has a wanted key twice, saying why.

    Examples
    --------
    >>> scan_object('{"text": "a", "price": 1.10}', ["price"])
    ({'text': 'a', 'price': 1.1}, {'price': '1.10'})
    """
    found: dict[str, Any] = {}
    texts: dict[str, str] = {}
    position = _skip(text, 0)
    if text[position : position + 1] != "{":
        raise json.JSONDecodeError("Expecting an object", text, position)
    position = _skip(text, position + 1)
    is_open = text[position : position + 1] != "}"
    while is_open:
        if (match := _KEY.match(text, position)) is not None:
            key, position = match[1], match.end()
        else:
            key, position = _scan_key(text, position)
        found[key], end = _read_value(text, position)
        if key in wanted:
            if key in texts:
                raise ValueError(f"the key {key[:40]!r} comes twice")
            texts[key] = text[position:end]
        if (match := _AFTER_VALUE.match(text, end)) is None:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, _skip(text, end))
        is_open, position = match[1] == ",", match.end(1) if match[1] == "," else match.start(1)
    position = _skip(text, position + 1)
    if position != len(text):
        raise json.JSONDecodeError("Extra data", text, position)
    return found, texts


def _read_value(text: str, position: int) -> tuple[Any, int]:
    """Return a value and where it ends."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python takes by default
        return _DECODER_OF_LONG_INTEGERS.raw_decode(text, position)


def _scan_key(text: str, position: int) -> tuple[str, int]:
    """Return a key and where its value begins."""
    position = _skip(text, position)
    if text[position : position + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
    key, position = _DECODER.raw_decode(text, position)
    position = _skip(text, position)
    if text[position : position + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
    return key, _skip(text, position + 1)


def check_json(text: str) -> None:
    """Make sure that a text which Python takes for JSON is JSON.

    Raises
    ------
    ValueError
        Where it holds NaN or Infinity.

    Examples
    --------
    >>> check_json("[1, 2]")
    >>> check_json("[NaN]")
    Traceback (most recent call last):
        ...
    ValueError: NaN is not JSON
    """
    if any(word in text for word in _NOT_JSON):
        try:
            json.loads(text, parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error


def refuse_deep(text: str) -> None:
    """Refuse JSON that is nested so deeply that the caller's own depth would decide whether Python can read it.

    Raises
    ------
    ValueError
        It is nested more than 500 deep.

    Examples
    --------
    >>> refuse_deep("[" * 500 + "]" * 500)
    >>> refuse_deep('{"text": "' + "[" * 501 + '"}')
    >>> refuse_deep("[" * 501 + "]" * 501)
    Traceback (most recent call last):
        ...
    ValueError: nested more than 500 deep
    """
    if text.count("[") + text.count("{") <= _DEEPEST:
        return
    depth = 0
    for found in _NESTING.finditer(text):
        sign = found[0]
        depth += sign in "[{"
        depth -= sign in "]}"
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _skip(text: str, position: int) -> int:
    return _BLANKS.match(text, position).end()  # type: ignore[union-attr]


def _read_integer(text: str) -> int | Decimal:
    # Python turns no text of more than 4,300 digits into an integer.
    return int(text) if len(text) < 4000 else Decimal(text)


_DECODER = json.JSONDecoder()
_DECODER_OF_LONG_INTEGERS = json.JSONDecoder(parse_int=_read_integer)
