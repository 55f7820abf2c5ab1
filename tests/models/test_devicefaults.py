from __future__ import annotations

import pickle

import pytest
import torch

from daskinfer.errors import DeviceFailed
from daskinfer.models.execution.device_errors import explain_failures, is_out_of_memory
from daskinfer.models.execution.devices import find_cpu


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("HIP error: unspecified launch failure"),
    ],
)
def test_a_failed_device_is_told_apart(error: RuntimeError) -> None:
    device = find_cpu()
    with pytest.raises(DeviceFailed) as failure, explain_failures(device):
        raise error
    assert failure.value.message == f"{device.name} failed: {str(error).splitlines()[0]}"
    failure.value.worker = "tcp://a:1"
    assert pickle.loads(pickle.dumps(failure.value)).worker == "tcp://a:1"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    ],
)
def test_other_errors_pass(error: RuntimeError) -> None:
    with pytest.raises(RuntimeError) as passed, explain_failures(find_cpu()):
        raise error
    assert passed.value is error
    assert is_out_of_memory(error) == ("out of memory" in str(error))
