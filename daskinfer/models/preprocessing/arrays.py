"""Arrays of a partition as model inputs, for models that take no text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from daskinfer.errors import InputError
from daskinfer.models.preprocessing.encoding import EncodedRows
from daskinfer.models.preprocessing.textconfig import vocab_size
from daskinfer.models.request import TaskRequest
from daskinfer.spec.outline import InputArray

VALUES_PER_TOKEN = 768
"""Input values that count as one token when rows are packed into microbatches: a patch of 16 x 16 colour pixels."""

Array = np.ndarray[Any, Any]


class ArrayEncoder:
    """Gives a partition's arrays to a model's forward under the names it takes them by.

    Parameters
    ----------
    request
        A `forward` request; its arrays say what is taken.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(2,))
    >>> files = {"config.json": b'{"vocab_size": 10}'}
    >>> encoder = ArrayEncoder(TaskRequest("forward", ModelOptions(), "BertModel", files, arrays=(ids,)))
    >>> rows, refused = encoder.encode({"input_ids": np.array([[1, 9], [1, 10]])})
    >>> len(rows.lengths), refused
    (1, {1: 'input_ids: 10 is not between 0 and 9'})
    """

    def __init__(self, request: TaskRequest) -> None:
        self._arrays = bound_ids(request)

    def encode(self, columns: Mapping[str, Array]) -> tuple[EncodedRows, dict[int, str]]:
        """Return the rows that the model can take, and why it cannot take the others.

        Parameters
        ----------
        columns
            Input name -> values (rows, ...), one of every array that the request names.

        Returns
        -------
        EncodedRows
            The other rows, in order, as the model's types.
        dict
            Position of a refused row -> the reason: an integer that the model's type or vocabulary does not hold.

        Raises
        ------
        InputError
            Where a column is missing, or has another shape or kind of value than the model takes.
        """
        refused: dict[int, str] = {}
        for array in self._arrays:
            refused |= _find_unusable(array, _require(array, columns))
        rows = len(columns[self._arrays[0].name])
        keep = np.ones(rows, dtype=bool)
        keep[list(refused)] = False
        cast = {array.name: columns[array.name][keep].astype(array.dtype) for array in self._arrays}
        return make_rows(cast), refused


def count_row_tokens(inputs: Sequence[InputArray]) -> int:
    """Return what a row of such inputs counts as, in tokens.

    Examples
    --------
    >>> count_row_tokens([InputArray(name="pixel_values", dtype="float32", shape=(3, 224, 224))])
    196
    """
    return _count_tokens(array.shape for array in inputs)


def bound_ids(request: TaskRequest) -> tuple[InputArray, ...]:
    """Return the arrays of a `forward` request, token ids bounded by the model's vocabulary.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(8,))
    >>> files = {"config.json": b'{"vocab_size": 30522}'}
    >>> bound_ids(TaskRequest("forward", ModelOptions(), "BertModel", files, arrays=(ids,)))[0].bound
    30522
    """
    size = vocab_size(request.config)
    return tuple(
        array.model_copy(update={"bound": size}) if array.bound is None and array.name.endswith("input_ids") else array
        for array in request.arrays
    )


def make_rows(arrays: Mapping[str, Array]) -> EncodedRows:
    """Return arrays (rows, ...) as encoded rows; a row's length stands for its number of values.

    Examples
    --------
    >>> make_rows({"pixel_values": np.zeros((2, 3, 32, 32), np.float32)}).lengths
    array([4, 4])
    """
    rows = len(next(iter(arrays.values())))
    starts = np.arange(rows + 1, dtype=np.int64) * _count_tokens(array.shape[1:] for array in arrays.values())
    return EncodedRows(ids=np.empty(0, dtype=np.int32), starts=starts, arrays=arrays)


def _count_tokens(shapes: Iterable[tuple[int | None, ...]]) -> int:
    values = sum(prod(size or 1 for size in shape) for shape in shapes)
    return max(1, -(-values // VALUES_PER_TOKEN))


def _require(array: InputArray, columns: Mapping[str, Array]) -> Array:
    if array.name not in columns:
        raise InputError(
            f"the model takes {array.name!r}, which the input does not have; it has {', '.join(sorted(columns))}",
            hint=f"Name its column in the recipe: input.columns: {{{array.name}: COLUMN}}.",
        )
    values = columns[array.name]
    if values.shape[1:] != array.shape:
        raise InputError(f"{array.name}: rows have the shape {values.shape[1:]}, the model takes {array.shape}")
    if not np.can_cast(values.dtype, array.dtype, "same_kind"):
        raise InputError(
            f"{array.name}: the input is {values.dtype}, which cannot be turned into the model's {array.dtype}",
            hint="Convert the column first.",
        )
    return values


def _find_unusable(array: InputArray, values: Array) -> dict[int, str]:
    wanted = np.dtype(array.dtype)
    if not (np.issubdtype(values.dtype, np.integer) and np.issubdtype(wanted, np.integer)):
        return {}
    limits = np.iinfo(wanted)
    lowest = limits.min if array.bound is None else 0
    highest = limits.max if array.bound is None else array.bound - 1
    is_bad = (values < lowest) | (values > highest)
    return {
        int(row): f"{array.name}: {values[row][is_bad[row]].flat[0]} is not between {lowest} and {highest}"
        for row in np.flatnonzero(is_bad.reshape(len(values), -1).any(axis=1))
    }
