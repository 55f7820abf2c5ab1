"""The kinds of column, and what values fit them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from daskinfer.errors import InputError
from daskinfer.spec.rows import ArrayColumn

ARROW_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "binary": pa.large_binary(),
}

_NAMES = {type(None): "null", str: "a string", bool: "a boolean", list: "a list", dict: "an object"}
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,18})")
_FLOAT = re.compile(r"-?((0|[1-9]\d*)\.\d*|\.\d+)([eE][+-]?\d+)?|-?[1-9]\d*[eE][+-]?\d+|nan|NaN|-?inf")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

Convert = Callable[[str, Any], Any]


def convert_text(value: Any) -> str:
    """Return what a task reads, which must be a string that UTF-8 can carry.

    Raises
    ------
    ValueError
        Where it is not, saying what it is.
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


def convert(kind: str, value: Any) -> str | int | float | bool:
    """Return a JSON-like value as its column's kind holds it; null is "" in strings and NaN in floats.

    Raises
    ------
    ValueError
        Where the value does not fit, saying what was expected and what came.
    """
    if kind == "string":
        if value is None:
            return ""
        if isinstance(value, dict | list | bool | int | float):
            value = json.dumps(value, ensure_ascii=False, default=str)
        return convert_text(str(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float64" and value is None:
        return math.nan
    if kind == "float64" and number and (isinstance(value, float) or abs(value) <= 2**53):
        return float(value)
    if kind == "int64" and number and isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    raise ValueError(f"expected {kind}, got {describe(value)}")


def convert_cell(kind: str, cell: str) -> str | int | float | bool:
    """Return a csv field as its column's kind holds it; an empty one is null."""
    return cell if kind == "string" else convert(kind, parse_cell(cell))


def infer_kind(values: Iterable[Any], fit: Convert) -> str:
    """Return the narrowest kind that all values fit; `string` where there is nothing to go by."""
    known = list(values)
    if all(value is None or value == "" for value in known):
        return "string"
    return next(kind for kind in ("bool", "int64", "float64", "string") if _all_fit(kind, known, fit))


def check_picture(array: ArrayColumn, where: str) -> None:
    """Make sure that arrays are images that are not encoded.

    Raises
    ------
    InputError
        Where they are not.
    """
    if array.dtype != "uint8" or len(array.shape) not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"{where} holds {array.dtype} of shape {array.shape} a row, not images",
            hint="An image is a file's bytes (parquet), or uint8 of shape (height, width, 3) or (height, width).",
        )


def describe(value: Any) -> str:
    """Return a value as an error message names it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value:.25}" if isinstance(value, float) else f"the number {str(value)[:25]}"
    name = _NAMES.get(type(value), type(value).__name__)
    return name if value is None else f"{name} ({str(value)[:40]})"


def _all_fit(kind: str, values: list[Any], fit: Convert) -> bool:
    if kind == "string":
        return True
    try:
        for value in values:
            fit(kind, value)
    except ValueError:
        return False
    return True


def parse_cell(cell: str) -> Any:
    """Return what a csv field says: a number, a boolean, None where it is empty, or the text it is."""
    if not cell:
        return None
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    return _BOOLEANS.get(cell, cell)
