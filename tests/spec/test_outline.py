from __future__ import annotations

import pytest

from daskinfer.spec.outline import TensorSpec, bundle_offsets, largest_bundle

HIDDEN = TensorSpec(dtype="bfloat16", dims=((0, 1, 0, 0), (0, 0, 1, 0), (20, 0, 0, 0)))
BIAS = TensorSpec(dtype="float32", dims=((1, 0, 0, 0), (3, 0, 0, 0), (0, 0, 1, 0), (0, 0, 1, 0)))
SKIP = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (5, 0, 0, 0), (7, 0, 0, 0)))
SCALAR = TensorSpec(dtype="int64", dims=())


def test_offsets_are_aligned() -> None:
    assert bundle_offsets([1, 64, 65, 0]) == (0, 64, 128, 256, 256)
    assert bundle_offsets([]) == (0,)


@pytest.mark.parametrize(
    ("tensors", "capacity", "max_length", "expected"),
    [
        ((HIDDEN,), 48, 16, 48 * 20 * 2),  # any length that divides the capacity
        ((BIAS,), 48, 16, 3 * 16 * 16 * 4),  # the longest row
        ((BIAS,), 10, 16, 1216),  # no row is longer than the capacity; 1200, aligned
        ((SKIP,), 48, 16, 48 * 35 * 4),  # the most rows
        ((SKIP,), 3, 1, 448),  # lengths play no part
        ((SCALAR,), 48, 16, 64),
        ((HIDDEN, BIAS), 48, 16, 1920 + 3072),  # three rows of 16 tokens beat both extremes
        ((SKIP, BIAS), 48, 16, 6720 + 64),  # 48 short rows beat 3 long ones
    ],
)
def test_largest_bundle(tensors: tuple[TensorSpec, ...], capacity: int, max_length: int, expected: int) -> None:
    assert largest_bundle(tensors, capacity, max_length) == expected
    sizes = [
        bundle_offsets(tensor.nbytes(rows, length) for tensor in tensors)[-1]
        for length in range(1, max_length + 1)
        for rows in range(1, capacity // length + 1)
    ]
    assert max(sizes) == expected
