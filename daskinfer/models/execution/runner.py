"""A stage at work: microbatches through its module, in parts where a whole one does not fit the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from daskinfer.errors import JobFailed
from daskinfer.models.execution.device_errors import explain_failures, is_out_of_memory
from daskinfer.models.execution.device_transfer import TransferBatch, make_transfer
from daskinfer.models.tensors import Array, tensor_to_array
from daskinfer.spec.outline import TensorSpec
from daskinfer.spec.plan import DeviceShape

Tensors = tuple[Tensor, ...] | dict[str, Tensor]
Results = tuple[Array, ...] | dict[str, Array]
Forward = Callable[[dict[str, Tensor], tuple[Tensor, ...]], Tensors]
"""(inputs by name, what the stage before sent) -> what this stage sends, or on the last one its outputs by name."""

_ROWS = (0, 1, 0, 0)
# Most items of a part by (snapshot, device). Runners come and go with the jobs of a worker; what fits stays the same.
_ceilings: dict[tuple[str, str], int] = {}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a runner has met with so far."""

    out_of_memory: int
    """Attempts that ended because the device was full."""
    ceiling: int | None
    """Most items, rows * length, that a part may have; None while whole microbatches fit."""
    device_peak: int
    """Most bytes that torch held on the device; 0 on a CPU."""


class Runner:
    """Runs one microbatch at a time, arrays in and arrays out.

    Parameters
    ----------
    forward
        The stage's module. Its weights are on the device.
    received, returned
        The tensors that come from the stage before, and what comes out: a tuple, or by name on the last stage.
    dtype
        Floating-point inputs are cast to it.
    snapshot, device
        What a ceiling is remembered for.
    threads
        Cores that a call computes with.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.models.execution.devices import find_cpu
    >>> rows = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (2, 0, 0, 0)))
    >>> about = {"dtype": "float32", "snapshot": "sha256:0", "device": find_cpu(), "threads": 1}
    >>> runner = Runner(lambda inputs, received: {"y": inputs["x"] * 2}, received=(), returned={"y": rows}, **about)
    >>> runner.run({"x": np.float32([[1, 2], [3, 4]])})["y"].tolist(), runner.usage.out_of_memory
    ([[2.0, 4.0], [6.0, 8.0]], 0)
    """

    def __init__(
        self,
        forward: Forward,
        *,
        received: tuple[TensorSpec, ...],
        returned: tuple[TensorSpec, ...] | Mapping[str, TensorSpec],
        dtype: str,
        snapshot: str,
        device: DeviceShape,
        threads: int,
    ) -> None:
        self._forward = forward
        self._names = tuple(returned) if isinstance(returned, Mapping) else ()
        results = tuple(returned.values()) if isinstance(returned, Mapping) else returned
        self._received_axes = [_row_axis(tensor) for tensor in received]
        self._result_axes = [_row_axis(tensor) for tensor in results]
        self._divisible = all(_is_divisible(tensor) for tensor in (*received, *results))
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._key = (snapshot, device.name)
        self._device = device
        self._threads = threads
        self._transfer = make_transfer(device)
        self._lock = threading.Lock()
        self._out_of_memory = 0
        self._peak = 0

    @property
    def usage(self) -> Usage:
        """What happened so far."""
        return Usage(self._out_of_memory, _ceilings.get(self._key), self._peak)

    def run(self, inputs: Mapping[str, Array], received: tuple[Array, ...] = (), *, length: int = 1) -> Results:
        """Run one microbatch.

        Parameters
        ----------
        inputs
            The model's inputs, (rows, ...) each.
        received
            What the stage before sent.
        length
            Padded length of the rows in tokens; 1 for models without text.

        Returns
        -------
        tuple or dict
            What the stage sends; on the last stage its outputs by name.

        Raises
        ------
        JobFailed
            Not even one row fits the device.
        DeviceFailed
            The device is of no more use to this process.
        """
        rows = len(next(iter(inputs.values())))
        with self._lock, torch.inference_mode(), explain_failures(self._device):
            # OpenMP keeps this number for each thread, and the pool's threads come and go.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            while True:
                size = self._part_rows(rows, length)
                try:
                    parts = self._run_parts(inputs, received, rows, size)
                    break
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    told = str(error).partition("\n")[0]
                # Only here, where the traceback no longer holds the tensors of what failed, can they be freed. All
                # rows run again, so that the parts, which decide bits, follow from the ceiling alone.
                self._transfer.free()
                self._lower_ceiling(size, length, told)
            self._peak = max(self._peak, self._transfer.peak())
            return self._join(parts)

    def _part_rows(self, rows: int, length: int) -> int:
        ceiling = _ceilings.get(self._key)
        return rows if ceiling is None or not self._divisible else min(rows, max(1, ceiling // length))

    def _lower_ceiling(self, size: int, length: int, told: str) -> None:
        self._out_of_memory += 1
        if size == 1:
            raise JobFailed(
                f"{self._device.name} has no room for a single row of length {length}: {told}",
                hint="Raise pipeline.stages, lower model.options.max_length, or use a device with more memory.",
            )
        if not self._divisible:
            raise JobFailed(
                f"{self._device.name} has no room for {size} rows of length {length}, "
                f"and this model cannot compute a microbatch in parts: {told}",
                hint="Lower pipeline.microbatch_tokens.",
            )
        _ceilings[self._key] = min(_ceilings.get(self._key, size * length), size // 2 * length)

    def _run_parts(
        self, inputs: Mapping[str, Array], received: tuple[Array, ...], rows: int, size: int
    ) -> list[list[Tensor]]:
        parts = []
        batch = self._load(inputs, received, slice(0, size))
        for end in range(size, rows + size, size):
            parts.append([self._transfer.fetch(tensor) for tensor in self._compute(tuple(inputs), batch)])
            if end < rows:  # the device still computes
                batch = self._load(inputs, received, slice(end, end + size))
        self._transfer.finish()
        return parts

    def _load(self, inputs: Mapping[str, Array], received: tuple[Array, ...], rows: slice) -> TransferBatch:
        taken = (
            array if axis is None else array[(slice(None),) * axis + (rows,)]
            for array, axis in zip(received, self._received_axes, strict=True)
        )
        return self._transfer.load([*(array[rows] for array in inputs.values()), *taken])

    def _compute(self, names: tuple[str, ...], batch: TransferBatch) -> list[Tensor]:
        tensors = self._transfer.land(batch)
        inputs = {
            name: tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            for name, tensor in zip(names, tensors, strict=False)
        }
        result = self._forward(inputs, tuple(tensors[len(names) :]))
        results = [result[name] for name in self._names] if isinstance(result, dict) else list(result)
        if len(results) != len(self._result_axes):
            raise ValueError(f"the stage returned {len(results)} tensors instead of {len(self._result_axes)}")
        return results

    def _join(self, parts: list[list[Tensor]]) -> Results:
        arrays = [
            tensor_to_array(pieces[0] if axis is None or len(pieces) == 1 else torch.cat(pieces, axis))
            for pieces, axis in zip(zip(*parts, strict=True), self._result_axes, strict=True)
        ]
        return dict(zip(self._names, arrays, strict=True)) if self._names else tuple(arrays)


def _row_axis(tensor: TensorSpec) -> int | None:
    return tensor.dims.index(_ROWS) if _ROWS in tensor.dims else None


def _is_divisible(tensor: TensorSpec) -> bool:
    """Whether rows are one dimension of a tensor, or none: then it is the same for all of them."""
    return [dim for dim in tensor.dims if dim[1] or dim[3]] in ([], [_ROWS])
