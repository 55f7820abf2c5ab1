"""Arrays to the device and back: plainly, or beside the computing on streams of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from daskinfer.models.tensors import Array, tensor_to_array
from daskinfer.spec.plan import DeviceShape


@dataclass(frozen=True, slots=True, eq=False)
class TransferBatch:
    """Tensors on their way to the device."""

    tensors: list[Tensor]
    """On the device, not to be used before they have landed."""
    loaded: torch.cuda.Event | None = None
    """What to wait for."""


class DeviceTransfer(Protocol):
    """How one kind of device gets its operands and gives its results."""

    def load(self, arrays: Sequence[Array]) -> TransferBatch:
        """Begin to copy arrays to the device; the caller's own are never written to, whatever the module does."""

    def land(self, batch: TransferBatch) -> list[Tensor]:
        """Return the tensors for the computing that is queued from now on."""

    def fetch(self, tensor: Tensor) -> Tensor:
        """Begin to copy a result to the host; it is there after `finish`."""

    def finish(self) -> None:
        """Wait for all that was fetched."""

    def free(self) -> None:
        """Give unused memory back to the device."""

    def peak(self) -> int:
        """Return the most bytes that this process held on the device; 0 where nobody counts."""


def make_transfer(device: DeviceShape) -> DeviceTransfer:
    """Return how tensors go to a device.

    Examples
    --------
    >>> from daskinfer.models.execution.devices import find_cpu
    >>> type(make_transfer(find_cpu())).__name__
    'PlainTransfer'
    """
    return StreamTransfer() if device.kind == "cuda" else PlainTransfer(device.kind)


class PlainTransfer:
    """One copy after the other, in the calling thread.

    Examples
    --------
    >>> transfer = PlainTransfer("cpu")
    >>> transfer.land(transfer.load([np.float32([1, 2])]))
    [tensor([1., 2.])]
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def load(self, arrays: Sequence[Array]) -> TransferBatch:
        """Copy arrays to the device."""
        return TransferBatch([_copy(array).to(self._kind) for array in arrays])

    def land(self, batch: TransferBatch) -> list[Tensor]:
        """Return the tensors."""
        return batch.tensors

    def fetch(self, tensor: Tensor) -> Tensor:
        """Copy a result to the host."""
        return tensor.cpu()

    def finish(self) -> None:
        """Nothing is under way."""

    def free(self) -> None:
        """Empty the device's cache; a CPU has none."""
        if self._kind == "mps":
            torch.mps.empty_cache()

    def peak(self) -> int:
        """Return what the driver holds now."""
        return torch.mps.driver_allocated_memory() if self._kind == "mps" else 0


class StreamTransfer:
    """Copies through pinned memory on a stream for each direction, while the GPU computes on its own.

    torch's allocators keep pinned and device memory from being used again before the streams named to them are done
    with it, and keep the pinned buffers for the next copies.
    """

    def __init__(self) -> None:
        self._loads = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._fetches = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def load(self, arrays: Sequence[Array]) -> TransferBatch:
        """Fill pinned buffers and queue their copies."""
        pinned = [_copy(array, pinned=True) for array in arrays]
        with torch.cuda.stream(self._loads):
            tensors = [tensor.to("cuda", non_blocking=True) for tensor in pinned]
        return TransferBatch(tensors, self._loads.record_event())

    def land(self, batch: TransferBatch) -> list[Tensor]:
        """Let the computing wait for these copies."""
        computing = torch.cuda.current_stream()
        if batch.loaded is not None:
            computing.wait_event(batch.loaded)
        for tensor in batch.tensors:
            tensor.record_stream(computing)
        return batch.tensors

    def fetch(self, tensor: Tensor) -> Tensor:
        """Queue the copy of a result into pinned memory, after what computes it."""
        if not tensor.is_cuda:  # an offloaded module may leave its results on the host
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._fetches.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._fetches):
            pinned.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._fetches)
        return pinned

    def finish(self) -> None:
        """Wait for the copies."""
        self._fetches.synchronize()

    def free(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()

    def peak(self) -> int:
        """Return the allocator's own count."""
        return torch.cuda.max_memory_allocated()


def _copy(array: Array, *, pinned: bool = False) -> Tensor:
    tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=pinned)
    np.copyto(tensor_to_array(tensor), array)
    return tensor
