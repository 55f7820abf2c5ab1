"""The four kinds of column, and what values fit them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

ARROW_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}

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
    return cell if kind == "string" else convert(kind, _parse_cell(cell))


def infer_kind(values: Iterable[Any], fit: Convert) -> str:
    """Return the narrowest kind that all values fit; `string` where there is nothing to go by."""
    known = list(values)
    if all(value is None or value == "" for value in known):
        return "string"
    return next(kind for kind in ("bool", "int64", "float64", "string") if _all_fit(kind, known, fit))


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


def _parse_cell(cell: str) -> Any:
    if not cell:
        return None
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    return _BOOLEANS.get(cell, cell)
