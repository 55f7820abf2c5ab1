"""Types of columns: as records and manifests name them, as a recipe names them, and one type for several."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import lru_cache

import pyarrow as pa

JSON = pa.json_()
"""Values as JSON text, which is written as it is."""

NAMED = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "binary": pa.large_binary(),
}
"""The first names that records had for types, which keep their meaning."""
_ENCODED = "arrow:"

_UNITS = "s|ms|us|ns"
_UTC = {"UTC", "utc", "Etc/UTC", "Z", "Zulu", "GMT", "+00:00", "-00:00", "+0000"}
"""Names of one zone, which other writers give it."""
_SIMPLE = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "date32": pa.date32(),
    "date64": pa.date64(),
    "json": JSON,
}
_DECIMAL = re.compile(r"decimal(?:128|256)?\(\s*(\d+)\s*,\s*(-?\d+)\s*\)")
_TIME = re.compile(rf"time(32|64)\[({_UNITS})\]")
_TIMESTAMP = re.compile(rf"timestamp\[({_UNITS})(?:,\s*tz=([A-Za-z0-9_+:/-]+))?\]")
DECLARABLE = (
    *_SIMPLE,
    "decimal128(PRECISION, SCALE)",
    "decimal256(PRECISION, SCALE)",
    "time32[s|ms]",
    "time64[us|ns]",
    "timestamp[s|ms|us|ns]",
    "timestamp[UNIT, tz=ZONE]",
)
"""What a recipe may write."""


def encode_type(own: pa.DataType) -> str:
    """Return a type as records name it: as a recipe does, else `arrow:` and a serialised schema in base64.

    Examples
    --------
    >>> encode_type(pa.decimal128(10, 2))
    'decimal128(10, 2)'
    >>> encode_type(pa.list_(pa.int8())).startswith("arrow:")
    True
    """
    for name, known in (NAMED | _SIMPLE).items():
        if own == known:
            return name
    try:
        if parse_declared(str(own)) == own:
            return str(own)
    except ValueError:
        pass
    # The name of the one field is empty, so that one type has one text.
    data: bytes = pa.schema([pa.field("", own)]).serialize().to_pybytes()
    return _ENCODED + base64.b64encode(data).decode()


@lru_cache(1024)
def decode_type(text: str) -> pa.DataType:
    """Return the type that a record names.

    Raises
    ------
    ValueError
        Where it names none.

    Examples
    --------
    >>> decode_type(encode_type(pa.list_(pa.int8()))) == pa.list_(pa.int8())
    True
    >>> decode_type("varchar")
    Traceback (most recent call last):
        ...
    ValueError: 'varchar' is no type that is known; known are bool, int8, ...
    """
    if (found := NAMED.get(text)) is not None:
        return found
    if not text.startswith(_ENCODED):
        return parse_declared(text)
    try:
        data = base64.b64decode(text.removeprefix(_ENCODED), validate=True)
        return pa.ipc.read_schema(pa.py_buffer(data)).field(0).type
    except (ValueError, OSError, IndexError, pa.ArrowException) as error:
        raise ValueError(f"'{text[:40]}' is no type of a column: {error}") from error


def describe_type(own: pa.DataType) -> str:
    """Return a type as messages name it.

    Examples
    --------
    >>> describe_type(JSON), describe_type(pa.float64())
    ('JSON', 'double')
    """
    if own == JSON:
        return "JSON"
    return own.extension_name if isinstance(own, pa.BaseExtensionType) else str(own)


def find_extension(field: pa.Field) -> str:
    """Return the name of a type in a field, or in what it holds, of which Arrow here knows the plain values alone; else "".

    Examples
    --------
    >>> find_extension(pa.field("a", pa.int64(), metadata={"ARROW:extension:name": "geo.point"}))
    'geo.point'
    """
    name = (field.metadata or {}).get(b"ARROW:extension:name")
    if name is not None and not isinstance(field.type, pa.BaseExtensionType):
        return str(name.decode(errors="replace"))
    inner = (find_extension(field.type.field(number)) for number in range(field.type.num_fields))
    return next(filter(None, inner), "")


def parse_declared(name: str) -> pa.DataType:
    """Return the type that a recipe names.

    Raises
    ------
    ValueError
        Where it names none, saying why.

    Examples
    --------
    >>> parse_declared("timestamp[us, tz=UTC]")
    TimestampType(timestamp[us, tz=UTC])
    >>> parse_declared("time32[ns]")
    Traceback (most recent call last):
        ...
    ValueError: 'time32[ns]' is no type: time32 counts s or ms, time64 us or ns
    """
    text = name.strip()
    if text in _SIMPLE:
        return _SIMPLE[text]
    if match := _DECIMAL.fullmatch(text):
        precision, scale = map(int, match.groups())
        wide = text.startswith("decimal256") or (precision > 38 and not text.startswith("decimal128"))
        if precision < 1 or precision > (76 if wide else 38):
            raise ValueError(f"'{name}' has a precision that is not from 1 to {76 if wide else 38}")
        return (pa.decimal256 if wide else pa.decimal128)(precision, scale)
    if match := _TIME.fullmatch(text):
        bits, unit = match.groups()
        if (bits == "32") != (unit in ("s", "ms")):
            raise ValueError(f"'{name}' is no type: time32 counts s or ms, time64 us or ns")
        return pa.time32(unit) if bits == "32" else pa.time64(unit)
    if match := _TIMESTAMP.fullmatch(text):
        own = pa.timestamp(*match.groups())
        try:
            pa.array([0], own).cast(pa.string())
        except pa.ArrowException as error:
            raise ValueError(f"'{name}' has a time zone that is not known: {error}") from error
        return own
    raise ValueError(f"'{name}' is no type that is known; known are {', '.join(DECLARABLE)}")


def is_text(own: pa.DataType) -> bool:
    """Whether values are texts, by themselves or by a dictionary.

    Examples
    --------
    >>> is_text(pa.dictionary(pa.int8(), pa.string())), is_text(pa.binary())
    (True, False)
    """
    if pa.types.is_dictionary(own):
        own = own.value_type
    return bool(pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own))


def is_binary(own: pa.DataType) -> bool:
    """Whether values are bytes of any length.

    Examples
    --------
    >>> is_binary(pa.large_binary()), is_binary(pa.binary(16))
    (True, False)
    """
    return bool(pa.types.is_binary(own) or pa.types.is_large_binary(own) or pa.types.is_binary_view(own))


def is_fixed_binary(own: pa.DataType) -> bool:
    """Whether values are bytes of one length. Decimals are stored so, and are not meant.

    Examples
    --------
    >>> is_fixed_binary(pa.binary(16)), is_fixed_binary(pa.decimal128(10, 2))
    (True, False)
    """
    return bool(pa.types.is_fixed_size_binary(own))


def lay_plain(own: pa.DataType) -> pa.DataType:
    """Return the type of the same values without views of texts and bytes, of which Arrow cannot take some rows.

    Examples
    --------
    >>> lay_plain(pa.list_(pa.string_view()))
    ListType(list<item: string>)
    """
    if pa.types.is_string_view(own) or pa.types.is_binary_view(own):
        return pa.string() if pa.types.is_string_view(own) else pa.binary()
    if pa.types.is_dictionary(own):
        return pa.dictionary(own.index_type, lay_plain(own.value_type), own.ordered)
    return _map_parts(own, lay_plain)


def widen_indices(own: pa.DataType) -> pa.DataType:
    """Return the type of the same values with dictionaries to which those of other files and row groups can be added.

    Examples
    --------
    >>> widen_indices(pa.dictionary(pa.int8(), pa.string())).index_type
    DataType(int32)
    """
    if pa.types.is_dictionary(own):
        return pa.dictionary(pa.int32(), own.value_type, own.ordered) if own.index_type.bit_width < 32 else own
    return _map_parts(own, widen_indices)


def _map_parts(own: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a nested type with its parts changed, any other as it is."""
    if pa.types.is_struct(own):
        return pa.struct([field.with_type(change(field.type)) for field in own])
    if pa.types.is_map(own):
        return pa.map_(change(own.key_type), change(own.item_type), own.keys_sorted)
    if not is_list(own):
        return own
    item = own.value_field.with_type(change(own.value_type))
    if pa.types.is_fixed_size_list(own):
        return pa.list_(item, own.list_size)
    kinds = {
        pa.types.is_list: pa.list_,
        pa.types.is_large_list: pa.large_list,
        pa.types.is_list_view: pa.list_view,
        pa.types.is_large_list_view: pa.large_list_view,
    }
    return next(make(item) for is_kind, make in kinds.items() if is_kind(own))


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds every value of both exactly; None where there is none.

    What is only nulls goes with anything, numbers, decimals and counts of time widen, texts and bytes of any layout go
    together, and what is nested goes by its parts.

    Examples
    --------
    >>> unify(pa.int8(), pa.float32())
    DataType(float)
    >>> unify(pa.int64(), pa.float64()) is None
    True
    """
    if one == other:
        return one
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    for rule in _RULES:
        if (found := rule(one, other)) is not None:
            return found
    return None


def _unify_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    floats = [own for own in (one, other) if pa.types.is_floating(own)]
    integers = [own for own in (one, other) if pa.types.is_integer(own)]
    if len(floats) + len(integers) < 2:
        return None
    if not floats:
        if pa.types.is_unsigned_integer(one) == pa.types.is_unsigned_integer(other):
            return max(one, other, key=lambda own: own.bit_width)
        unsigned = next(own for own in integers if pa.types.is_unsigned_integer(own))
        signed = next(own for own in integers if pa.types.is_signed_integer(own))
        width = max(signed.bit_width, 2 * unsigned.bit_width)
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width)
    widest = max(floats, key=lambda own: own.bit_width)
    # A float of so many bits holds integers of half as many, roughly, exactly.
    needed = max((2 * own.bit_width for own in integers), default=0)
    width = max(widest.bit_width, {0: 0, 16: 16, 32: 32, 64: 64}.get(needed, 128))
    return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}.get(width)


def _unify_decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_decimal(one) and pa.types.is_decimal(other)):
        return None
    scale = max(one.scale, other.scale)
    precision = max(one.precision - one.scale, other.precision - other.scale) + scale
    if precision > 76:
        return None
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, scale)


def _unify_texts(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (is_text(one) and is_text(other)):
        return None
    return pa.large_string() if any(map(pa.types.is_large_string, (one, other))) else pa.string()


def _unify_bytes(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not all(is_binary(own) or is_fixed_binary(own) for own in (one, other)):
        return None
    return pa.large_binary() if any(map(pa.types.is_large_binary, (one, other))) else pa.binary()


def _unify_times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    def finest() -> str:
        return str(max((one.unit, other.unit), key=("s", "ms", "us", "ns").index))

    if pa.types.is_date(one) and pa.types.is_date(other):
        return pa.date32()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        if one.tz != other.tz and {one.tz, other.tz} <= _UTC:
            return pa.timestamp(finest(), "UTC")
        return pa.timestamp(finest(), one.tz) if one.tz == other.tz else None
    if pa.types.is_duration(one) and pa.types.is_duration(other):
        return pa.duration(finest())
    if pa.types.is_time(one) and pa.types.is_time(other):
        unit = finest()
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    return None


def _unify_dictionaries(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_dictionary(one) or pa.types.is_dictionary(other)):
        return None
    one, other = (own.value_type if pa.types.is_dictionary(own) else own for own in (one, other))
    return unify(one, other)


def _unify_nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_map(one) and pa.types.is_map(other):
        key, item = unify(one.key_type, other.key_type), unify(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        names = [field.name for field in one]
        if sorted(names) != sorted(field.name for field in other) or len({*names}) < len(names):
            return None
        types = [unify(field.type, other.field(field.name).type) for field in one]
        return None if None in types else pa.struct(list(zip(names, types, strict=True)))
    if is_list(one) and is_list(other) and not any(map(_is_list_view, (one, other))):
        item = unify(one.value_type, other.value_type)
        if item is None:
            return None
        if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other) and one.list_size == other.list_size:
            return pa.list_(item, one.list_size)
        large = any(map(pa.types.is_large_list, (one, other)))
        return pa.large_list(item) if large else pa.list_(item)
    return None


def is_list(own: pa.DataType) -> bool:
    """Whether values are lists of any layout.

    Examples
    --------
    >>> is_list(pa.list_(pa.int8(), 3)), is_list(pa.map_(pa.string(), pa.int8()))
    (True, False)
    """
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, _is_list_view)
    return any(kind(own) for kind in kinds)


def _is_list_view(own: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(own) or pa.types.is_large_list_view(own))


_RULES: tuple[Callable[[pa.DataType, pa.DataType], pa.DataType | None], ...] = (
    _unify_texts,
    _unify_dictionaries,
    _unify_numbers,
    _unify_decimals,
    _unify_bytes,
    _unify_times,
    _unify_nested,
)
