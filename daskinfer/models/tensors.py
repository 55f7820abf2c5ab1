"""Tensors as plain bytes and back, any dtype: for messages between processes and for arrays at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; what torch's own allocator gives. Kernels may sum in another order on other addresses, so bits depend on it."""

Array = np.ndarray[Any, Any]

FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Floating-point types by safetensors' names."""
STORED_DTYPES = FLOATS | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""All types that a snapshot may hold."""


def tensor_frames(tensor: Tensor) -> tuple[dict[str, Any], list[memoryview]]:
    """Return a header and one buffer that rebuild the tensor; no copy where it lies contiguous on the CPU.

    Raises
    ------
    TypeError
        For tensors without plain elements: sparse, quantised, nested or meta ones.

    Examples
    --------
    >>> header, frames = tensor_frames(torch.zeros(2, 3, dtype=torch.bfloat16))
    >>> header, [frame.nbytes for frame in frames]
    ({'dtype': 'bfloat16', 'shape': (2, 3), 'requires_grad': False}, [12])
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise TypeError(f"only dense tensors with data can be sent, not {tensor.layout} on {tensor.device}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    header = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": tuple(tensor.shape),
        "requires_grad": tensor.requires_grad,
    }
    return header, [plain.reshape(-1).view(torch.uint8).numpy().data]


def tensor_from_frames(header: dict[str, Any], frames: Sequence[bytes | bytearray | memoryview]) -> Tensor:
    """Return the CPU tensor of `tensor_frames`; the buffer itself where it is writable and aligned, else a copy.

    Examples
    --------
    >>> tensor = torch.tensor([[1.5, -2.0]])
    >>> torch.equal(tensor_from_frames(*tensor_frames(tensor)), tensor)
    True
    """
    whole = frames[0] if len(frames) == 1 else b"".join(frames)
    data = _as_tensor(np.frombuffer(whole, dtype=np.uint8))
    tensor = data.view(getattr(torch, header["dtype"])).reshape(header["shape"])
    return tensor.requires_grad_() if header["requires_grad"] else tensor


def tensor_nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements.

    Examples
    --------
    >>> tensor_nbytes(torch.zeros(2, 3, dtype=torch.bfloat16))
    12
    """
    return tensor.nelement() * tensor.element_size()


def array_to_tensor(array: Array) -> Tensor:
    """Return a numpy array as a CPU tensor, bfloat16 included; a view where its memory is writable and aligned.

    Examples
    --------
    >>> array_to_tensor(np.array([1.5, -2.0], ml_dtypes.bfloat16))
    tensor([ 1.5000, -2.0000], dtype=torch.bfloat16)
    """
    if array.dtype == ml_dtypes.bfloat16:
        return _as_tensor(array.view(np.int16)).view(torch.bfloat16)
    return _as_tensor(array)


def tensor_to_array(tensor: Tensor) -> Array:
    """Return a tensor as a contiguous numpy array, bfloat16 as `ml_dtypes.bfloat16`; a view where it can be.

    Examples
    --------
    >>> tensor_to_array(torch.tensor([1.5, -2.0], dtype=torch.bfloat16)).dtype.name
    'bfloat16'
    """
    tensor = tensor.detach().cpu().contiguous()
    array: Array
    if tensor.dtype == torch.bfloat16:
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = tensor.numpy()
    return array


def _as_tensor(array: Array) -> Tensor:
    if array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return torch.from_numpy(array)
    tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name))
    np.copyto(tensor.numpy(), array)
    return tensor
