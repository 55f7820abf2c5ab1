from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from daskinfer.models.tensors import (
    ALIGNMENT,
    array_to_tensor,
    tensor_frames,
    tensor_from_frames,
    tensor_nbytes,
    tensor_to_array,
)

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.complex64, torch.int64,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    return (left.dtype, left.shape, raw(left)) == (right.dtype, right.shape, raw(right))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("read_only", [True, False])
def test_any_dtype_survives(dtype: torch.dtype, read_only: bool) -> None:
    tensor = (torch.randn(5, 7) * 3).to(dtype)
    header, frames = tensor_frames(tensor)
    data = b"".join(frames)
    back = tensor_from_frames(header, [data if read_only else bytearray(data)])
    assert same(back, tensor)
    assert sum(frame.nbytes for frame in frames) == tensor_nbytes(tensor)
    assert back.data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda base: base.t(),
        lambda base: base[:, ::2],
        lambda base: base[1:, 1:],
        lambda base: base[0, 0],
        lambda base: base[:0],
        lambda base: base.expand(3, 4, 6),
        lambda base: torch.complex(base, base).conj(),
    ],
    ids=["transposed", "strided", "offset", "scalar", "empty", "expanded", "conjugate"],
)
def test_any_layout_survives(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = make(torch.randn(4, 6))
    header, frames = tensor_frames(tensor)
    assert torch.equal(tensor_from_frames(header, frames), tensor)


def test_gradients_are_asked_for_again() -> None:
    header, frames = tensor_frames(torch.ones(3, requires_grad=True))
    assert tensor_from_frames(header, frames).requires_grad


def test_contiguous_tensors_are_sent_without_a_copy() -> None:
    tensor = torch.zeros(1000)
    _, frames = tensor_frames(tensor)
    tensor[0] = 1
    assert bytes(frames[0][:4]) == np.float32(1).tobytes()


def test_several_frames_are_joined() -> None:
    tensor = torch.randn(10)
    header, frames = tensor_frames(tensor)
    assert torch.equal(tensor_from_frames(header, [frames[0][:12], frames[0][12:]]), tensor)


@pytest.mark.parametrize("tensor", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_data_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="only dense tensors"):
        tensor_frames(tensor)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_and_tensors_are_the_same_bits(dtype: type) -> None:
    array: np.ndarray[Any, Any] = np.arange(-8, 8).reshape(4, 4).astype(dtype)
    for candidate in (array, array[::-1], array.T):
        back = tensor_to_array(array_to_tensor(candidate))
        assert back.dtype == array.dtype
        assert back.tobytes() == candidate.tobytes()
