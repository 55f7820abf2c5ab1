"""Rows of a stage's first microbatch once more, alone, on the device that computes the job.

What a row may share a microbatch with was proved where the model was traced (`row_proof`). A kernel of another device, or
of another version of a library, may still let a row's result hang on its neighbours or on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from daskinfer.errors import JobFailed
from daskinfer.models.splitting.skeleton import padded_length
from daskinfer.models.tensors import Array, array_to_tensor
from daskinfer.spec.outline import Dim, InputArray, TensorSpec

TOLERANCES = {"float64": 3e-3, "float32": 3e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Largest difference, as a part of the largest number of the tensor, that is taken for the device's rounding."""

# Routers of experts choose otherwise where two scores are nearly equal, so that one row alone proves nothing.
_ROWS_TRIED = 3
# Numbers that are all smaller are compared as if the largest were this one.
_LEAST_SIZE = 1e-2
_TOKEN_DIM: Dim = (0, 0, 1, 0)

Run = Callable[[Mapping[str, Array], tuple[Array, ...]], Sequence[Array]]
"""(inputs by name, what the stage before sent) -> the stage's results in the order of `returned`."""


class DeviceCheck:
    """Compares rows of a microbatch with the same rows alone.

    Parameters
    ----------
    inputs
        The model's inputs.
    received, returned
        What a stage gets from the one before, and what it returns.

    Examples
    --------
    >>> x = InputArray(name="x", dtype="float32", shape=(2,))
    >>> rows = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (2, 0, 0, 0)))
    >>> check, batch = DeviceCheck((x,), (), (rows,)), {"x": np.float32([[1, 2], [3, 4]])}
    >>> check.compare(lambda inputs, received: (inputs["x"] * 2,), batch, (), (batch["x"] * 2,), "cpu")
    True
    >>> check.compare(lambda inputs, received: (inputs["x"] * 3,), batch, (), (batch["x"] * 2,), "cpu")
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobFailed: cpu computes rows otherwise alone than among others: 2 of 2 rows ...
    """

    def __init__(
        self, inputs: tuple[InputArray, ...], received: tuple[TensorSpec, ...], returned: tuple[TensorSpec, ...]
    ) -> None:
        self._inputs = inputs
        self._received = received
        self._returned = returned
        self._is_possible = all(_has_plain_rows(tensor) for tensor in (*received, *returned))
        # A tensor of the padded length that is no row's own, such as positions from the end, cannot be cut to a row's.
        self._may_shorten = all(_has_plain_tokens(tensor) for tensor in (*received, *returned))

    def compare(
        self, run: Run, inputs: Mapping[str, Array], received: tuple[Array, ...], results: Sequence[Array], device: str
    ) -> bool:
        """Compute a few rows alone, without their padding where the stage allows it; return whether any was compared.

        Parameters
        ----------
        run
            The stage.
        inputs, received
            A microbatch, as the stage was given it.
        results
            What it returned.
        device
            Its name, for the error.

        Raises
        ------
        JobFailed
            Every row that was tried differs from the same row among others.
        """
        rows = len(next(iter(inputs.values())))
        if rows < 2 or not self._is_possible:
            return False
        lengths = self._lengths(inputs)
        found = []
        # The longest rows have no padding that could matter to them.
        shorter = int((lengths < lengths.max()).sum()) or rows
        for row in np.argsort(lengths, kind="stable")[: min(_ROWS_TRIED, shorter)].tolist():
            length = int(lengths[row])
            alone = run(
                {array.name: _take_input(inputs[array.name], array, row, length) for array in self._inputs},
                tuple(map(lambda value, spec: _take(value, spec, row, rows, length), received, self._received)),
            )
            cut = [_take(value, spec, row, rows, length) for value, spec in zip(results, self._returned, strict=True)]
            found.append(max(map(_difference, alone, cut, results), default=0.0))
            if found[-1] <= 1.0:
                return True
        raise JobFailed(
            f"{device} computes rows otherwise alone than among others: {len(found)} of {len(found)} rows that were "
            f"tried differ by more than {min(found):.1f} times its rounding",
            hint="Update torch and the device's driver, take another model.dtype, or report this with the report's numerics.",
        )

    def _lengths(self, inputs: Mapping[str, Array]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the tokens of every row: up to the last one that is attended to."""
        padded = padded_length(inputs, self._inputs)
        rows = len(next(iter(inputs.values())))
        mask = next((inputs[array.name] for array in self._inputs if array.name == "attention_mask"), None)
        if mask is None or mask.ndim != 2 or not self._may_shorten:
            return np.full(rows, padded, np.int64)
        last = padded - np.argmax(mask[:, ::-1] != 0, axis=1)
        return np.where(mask.any(axis=1), last, padded).astype(np.int64)


def _has_plain_rows(tensor: TensorSpec) -> bool:
    """Whether rows are at most one dimension of a tensor, alone or times something constant or the length."""
    dims = [dim for dim in tensor.dims if dim[1] or dim[3]]
    return not dims or (len(dims) == 1 and not dims[0][0] and not dims[0][2])


def _has_plain_tokens(tensor: TensorSpec) -> bool:
    dims = [dim for dim in tensor.dims if dim[2] or dim[3]]
    return not dims or (any(dim[1] for dim in tensor.dims) and all(dim == _TOKEN_DIM for dim in dims))


def _take_input(values: Array, array: InputArray, row: int, length: int) -> Array:
    cut = tuple(slice(None) if size is not None else slice(0, length) for size in array.shape)
    return np.ascontiguousarray(values[(slice(row, row + 1), *cut)])


def _take(values: Array, spec: TensorSpec, row: int, rows: int, length: int) -> Array:
    """Return a row's part of a tensor as the stage has it when the row is alone."""
    index: list[slice] = []
    for size, (constant, per_row, per_token, both) in zip(values.shape, spec.dims, strict=True):
        if per_row or both:
            index.append(slice(row * (size // rows), (row + 1) * (size // rows)))
        else:
            index.append(slice(0, constant + per_token * length))
    return np.ascontiguousarray(values[tuple(index)])


def _difference(alone: Array, among: Array, whole: Array) -> float:
    """Return by how many tolerances a row's tensor differs, at the median of its places; infinite for other shapes."""
    left, right, everything = (array_to_tensor(array) for array in (alone, among, whole))
    if left.shape != right.shape:
        return float("inf")
    tolerance = TOLERANCES.get(str(right.dtype).removeprefix("torch."))
    if tolerance is None or not right.numel():
        return 0.0
    left, right, everything = left.double(), right.double(), everything.double()
    same = (left == right) | (left.isnan() & right.isnan())
    apart = torch.where(same, 0.0, (left - right).abs()).nan_to_num(nan=float("inf"))
    size = max(float(torch.where(everything.isfinite(), everything.abs(), 0.0).max()), _LEAST_SIZE)
    return float(_largest_by_place(apart).median()) / size / tolerance


def _largest_by_place(apart: Tensor) -> Tensor:
    """Return the largest difference of every vector along the last axis; a few experts' choices then move no median."""
    return apart.reshape(-1, apart.shape[-1] if apart.ndim > 1 else 1).amax(1)


def in_order(results: Sequence[Array] | Mapping[str, Array]) -> Sequence[Array]:
    """Return a stage's results without their names.

    Examples
    --------
    >>> in_order({"scores": np.zeros(2), "labels": np.ones(2)})
    (array([0., 0.]), array([1., 1.]))
    """
    return tuple(results.values()) if isinstance(results, Mapping) else results
