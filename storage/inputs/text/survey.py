"""What the rows of a jsonl file say of its columns: a type for all of them, found in flat memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from daskinfer.storage.columns.types import JSON
from daskinfer.storage.columns.values import fits_float

ARRAY_ROWS = 2048
"""Rows that decide what the rows of an array are, however the input is cut."""

# What a message lists; a file may have other keys in every row.
_NAMES = 100
_INTEGERS = frozenset("-0123456789")
_WORDS = {"true": "bool", "false": "bool", "NaN": "float", "Infinity": "float", "-Infinity": "float"}


class TypeSurvey:
    """Finds the type that holds all values of a column of JSON exactly; takes one value at a time and keeps none.

    Examples
    --------
    >>> survey = TypeSurvey()
    >>> for text in ("1", "2.5", "null"):
    ...     survey.add(text)
    >>> survey.type, survey.nulls
    (DataType(double), 1)
    """

    def __init__(self) -> None:
        self.nulls = 0
        self._seen: set[str] = set()
        self._lowest = 0
        self._highest = 0
        self._are_floats = True

    def add(self, text: str | None) -> None:
        """Take in a value as its JSON text; None where a row has none."""
        if text is None or text == "null":
            self.nulls += 1
            return
        first = text[0]
        if first == '"':
            self._seen.add("string")
        elif first in "{[":
            self._seen.add("nested")
        elif (kind := _WORDS.get(text)) is not None:
            self._seen.add(kind)
        elif _INTEGERS.issuperset(text) and text != "-0" and len(text) < 40:
            self._add_integer(int(text))
        else:
            self._seen.add("float")
            self._are_floats = self._are_floats and fits_float(text, float(text))

    @property
    def type(self) -> pa.DataType:
        """bool, int64, uint64, float64 or string where one of them holds all values exactly, else JSON text."""
        if not self._seen:
            return pa.string()
        if self._seen == {"int"}:
            if self._lowest >= -(2**63) and self._highest < 2**63:
                return pa.int64()
            return pa.uint64() if self._lowest >= 0 and self._highest < 2**64 else JSON
        if self._seen <= {"int", "float"} and self._are_floats:
            return pa.float64()
        return pa.bool_() if self._seen == {"bool"} else pa.string() if self._seen == {"string"} else JSON

    def _add_integer(self, value: int) -> None:
        self._seen.add("int")
        self._lowest = min(self._lowest, value)
        self._highest = max(self._highest, value)
        if self._are_floats and abs(value) > 2**53:
            self._are_floats = abs(value) < 2**1000 and int(float(value)) == value


class RowSurvey:
    """What some columns of rows are: which are there at all, types of some, arrays of others.

    Parameters
    ----------
    columns
        All that must be in some row.
    typed
        Those whose types all rows decide.
    arrays
        Those that are arrays, by their first rows.
    reads
        Those that the task reads as text, without which a row is refused.

    Examples
    --------
    >>> survey = RowSurvey(columns=["text", "id"], typed=["id"], arrays=[])
    >>> survey.add({"text": "a", "id": 1}, {"id": "1"})
    >>> survey.types(), survey.missing
    ({'id': DataType(int64)}, [])
    """

    def __init__(
        self, columns: Iterable[str], typed: Iterable[str], arrays: Iterable[str], reads: tuple[str, ...] = ()
    ) -> None:
        self.rows = 0
        self.reads = reads
        self.names: dict[str, None] = {}
        self.typed = frozenset(typed)
        self._missing = dict.fromkeys(columns)
        self._types = {column: TypeSurvey() for column in self.typed}
        self._values: dict[str, list[Any]] = {column: [] for column in arrays}

    def add(self, row: Mapping[str, Any], texts: Mapping[str, str], is_refused: bool = False) -> None:
        """Take in a row and the JSON texts of its typed columns; one that will be refused says nothing of types."""
        self.rows += 1
        if self._missing:
            if len(self.names) < _NAMES:
                self.names |= dict.fromkeys(row)
            self._missing = {column: None for column in self._missing if column not in row}
        if not is_refused:
            for column, survey in self._types.items():
                survey.add(texts.get(column))
        if self.rows <= ARRAY_ROWS:
            for column, values in self._values.items():
                if column in row:
                    values.append(row[column])

    @property
    def missing(self) -> list[str]:
        """Columns that no row has had so far."""
        return list(self._missing)

    @property
    def is_settled(self) -> bool:
        """Whether more rows would tell nothing more."""
        done = not self._types and not self._missing and self.rows > 0
        return done and (not self._values or self.rows >= ARRAY_ROWS)

    def types(self) -> dict[str, pa.DataType]:
        """Return the type of every typed column."""
        return {column: survey.type for column, survey in self._types.items()}

    def nulls(self) -> dict[str, int]:
        """Return how many rows of every typed column have no value."""
        return {column: survey.nulls for column, survey in self._types.items()}

    def values(self, column: str) -> list[Any]:
        """Return what the first rows have in a column of arrays."""
        return self._values[column]
