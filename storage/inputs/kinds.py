"""The kinds of values that a column is read as, and numbers in fields of csv."""

from __future__ import annotations

import math
import re
from typing import Any

from daskinfer.errors import InputError
from daskinfer.spec.rows import ArrayColumn

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,18})")
_FLOAT = re.compile(r"-?((0|[1-9]\d*)\.\d*|\.\d+)([eE][+-]?\d+)?|-?[1-9]\d*[eE][+-]?\d+|nan|NaN|-?inf")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def check_picture(array: ArrayColumn, where: str) -> None:
    """Make sure that arrays are images that are not encoded.

    Raises
    ------
    InputError
        Where they are not.

    Examples
    --------
    >>> check_picture(ArrayColumn(dtype="uint8", shape=(224, 224, 3)), "array 'image'")
    >>> check_picture(ArrayColumn(dtype="float32", shape=(3, 224, 224)), "array 'image'")
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: array 'image' holds float32 of shape (3, 224, 224) a row, not images
    An image is a file's bytes (parquet), or uint8 of shape (height, width, 3) or (height, width).
    """
    if array.dtype != "uint8" or len(array.shape) not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"{where} holds {array.dtype} of shape {array.shape} a row, not images",
            hint="An image is a file's bytes (parquet), or uint8 of shape (height, width, 3) or (height, width).",
        )


def parse_cell(cell: str) -> Any:
    """Return what a csv field says: a number, a boolean, None where it is empty, or the text it is.

    Examples
    --------
    >>> [parse_cell(cell) for cell in ("12", "012", "1.5", "true", "", "1e999")]
    [12, '012', 1.5, True, None, '1e999']
    """
    if not cell:
        return None
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell) and (math.isfinite(float(cell)) or not cell[-1].isdigit()):
        return float(cell)
    return _BOOLEANS.get(cell, cell)
