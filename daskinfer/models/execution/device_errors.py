"""Errors of devices, told apart from errors of models: a device that is full, and one that has failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from daskinfer.errors import DeviceFailed
from daskinfer.spec.plan import DeviceShape

# What allocators other than CUDA's say, and libraries that allocate behind torch's back.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
# Once one of them has been raised, every later call fails with it: only a new process helps.
_FAILED = (
    "CUDA error",
    "HIP error",
    "device-side assert",
    *(f"{library}_STATUS_{what}" for library in ("CUDNN", "CUBLAS") for what in ("EXECUTION_FAILED", "INTERNAL_ERROR")),
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device is full, so that less at a time may fit.

    Examples
    --------
    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_device_failure(error: RuntimeError) -> bool:
    """Whether the device has failed, so that this process can no longer compute with it.

    Examples
    --------
    >>> is_device_failure(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> is_device_failure(torch.OutOfMemoryError("CUDA out of memory"))
    False
    """
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _FAILED)


@contextmanager
def explain_failures(device: DeviceShape) -> Iterator[None]:
    """Raise `DeviceFailed` where the device fails.

    Examples
    --------
    >>> from daskinfer.models.execution.devices import describe_cpu
    >>> with explain_failures(describe_cpu("model name: H200")):
    ...     raise RuntimeError("CUDA error: an illegal memory access was encountered")
    Traceback (most recent call last):
        ...
    daskinfer.errors.DeviceFailed: H200 failed: CUDA error: an illegal memory access was encountered
    Look at the device (nvidia-smi, dmesg); a row that makes the model read out of bounds does this too.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        told = str(error).partition("\n")[0]
        raise DeviceFailed(
            f"{device.name} failed: {told}",
            hint="Look at the device (nvidia-smi, dmesg); a row that makes the model read out of bounds does this too.",
        ) from error
