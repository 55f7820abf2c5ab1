from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from daskinfer.errors import JobFailed
from daskinfer.ids import make_nonce
from daskinfer.models.execution.device_transfer import PlainTransfer
from daskinfer.models.execution.devices import find_device
from daskinfer.models.execution.runner import Forward, Runner, Usage
from daskinfer.models.tensors import Array
from daskinfer.spec.outline import Dim, TensorSpec
from daskinfer.spec.plan import DeviceShape

CPU = DeviceShape(kind="cpu", name="this CPU", memory=2**34, threads=1, bf16=False, fp16=False)
ROWS: Dim = (0, 1, 0, 0)
LENGTH: Dim = (0, 0, 1, 0)
WIDTH: Dim = (4, 0, 0, 0)
HIDDEN = TensorSpec(dtype="float32", dims=(ROWS, LENGTH, WIDTH))
BIAS = TensorSpec(dtype="float32", dims=((1, 0, 0, 0), LENGTH, LENGTH))
FLIPPED = TensorSpec(dtype="float32", dims=(LENGTH, ROWS, WIDTH))
EDGE = (HIDDEN, BIAS, FLIPPED)


class Crowded:
    """A stage that is exact in parts, and for which only so many rows fit."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.seen: list[int] = []
        self.failed: weakref.ref[Tensor] | None = None

    def __call__(self, inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.failed is None or self.failed() is None, "what failed still takes memory"
        hidden, bias, flipped = received
        ids = inputs["input_ids"]
        self.seen.append(len(ids))
        hidden.mul_(2)  # in place, as models do
        if len(ids) > self.limit:
            waste = hidden + 1
            self.failed = weakref.ref(waste)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
        mixed = torch.einsum("rlw,kl->rkw", hidden, bias[0].round())
        return mixed + ids[:, :, None], bias + 1, flipped + hidden.transpose(0, 1)


def make_runner(forward: Forward, device: DeviceShape = CPU, snapshot: str | None = None, **others: Any) -> Runner:
    settings: dict[str, Any] = {"received": EDGE, "returned": EDGE, "dtype": "float32", "threads": 1, **others}
    return Runner(forward, snapshot=snapshot or make_nonce(), device=device, **settings)


def make_operands(rows: int, length: int) -> tuple[dict[str, Array], tuple[Array, ...]]:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 100, (rows, length))
    return {"input_ids": ids}, tuple(
        generator.integers(-9, 9, spec.shape(rows, length)).astype(np.float32) for spec in EDGE
    )


def run(runner: Runner, rows: int, length: int) -> tuple[Array, ...]:
    inputs, received = make_operands(rows, length)
    result = runner.run(inputs, received, length=length)
    assert isinstance(result, tuple)
    for before, after in zip(make_operands(rows, length)[1], received, strict=True):
        assert np.array_equal(before, after), "a caller's array was written to"
    return result


def equal(one: tuple[Array, ...], other: tuple[Array, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("rows", "limit", "seen"),
    [
        (8, 8, [8]),
        (8, 7, [8, 4, 4]),
        (8, 3, [8, 4, 2, 2, 2, 2]),
        (7, 3, [7, 3, 3, 1]),
        (5, 1, [5, 2, 1, 1, 1, 1, 1]),
        (1, 1, [1]),
    ],
)
def test_parts_equal_the_whole(rows: int, limit: int, seen: list[int]) -> None:
    forward = Crowded(limit)
    runner = make_runner(forward)
    result = run(runner, rows, 6)
    assert forward.seen == seen
    assert equal(result, run(make_runner(Crowded()), rows, 6))
    assert result[0].any()
    assert runner.usage.out_of_memory == sum(size > limit for size in seen)


def test_what_failed_is_gone_when_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, gone = Crowded(4), []
    monkeypatch.setattr(
        PlainTransfer, "free", lambda self: gone.append(forward.failed is None or forward.failed() is None)
    )
    run(make_runner(forward), 8, 6)
    assert gone == [True]


def test_ceiling_is_remembered_for_this_snapshot_and_device() -> None:
    snapshot = make_nonce()
    runner = make_runner(Crowded(2), snapshot=snapshot)
    assert runner.usage == Usage(out_of_memory=0, ceiling=None, device_peak=0)
    run(runner, 8, 6)
    assert runner.usage == Usage(out_of_memory=2, ceiling=12, device_peak=0)

    later = Crowded(2)
    same = make_runner(later, snapshot=snapshot)
    for rows, length in [(8, 6), (8, 3), (2, 24)]:
        run(same, rows, length)
    assert later.seen == [2, 2, 2, 2, 4, 2, 2, 2, 2, 1, 1]
    assert same.usage.ceiling == 6
    assert same.usage.out_of_memory == 1

    for other in (make_runner(Crowded()), make_runner(Crowded(), CPU.model_copy(update={"name": "other"}), snapshot)):
        assert other.usage.ceiling is None


def test_one_row_too_many_says_what_to_do() -> None:
    runner = make_runner(Crowded(0))
    with pytest.raises(JobFailed, match=r"this CPU has no room for a single row of length 6: CUDA out of m.*GiB\.\nR"):
        run(runner, 4, 6)
    assert runner.usage.out_of_memory == 3


@pytest.mark.parametrize(
    "dims", [(ROWS, ROWS), ((0, 3, 0, 0), WIDTH), ((0, 0, 0, 1), WIDTH), ((1, 1, 0, 0), WIDTH)], ids=str
)
def test_rows_that_are_mixed_are_never_parted(dims: tuple[Dim, ...]) -> None:
    snapshot = make_nonce()
    run(make_runner(Crowded(2), snapshot=snapshot), 4, 6)  # of the stages only this one has a ceiling

    def fail(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    runner = make_runner(fail, snapshot=snapshot, received=(), returned=(TensorSpec(dtype="float32", dims=dims),))
    with pytest.raises(JobFailed, match="4 rows of length 6, and this model cannot compute a microbatch in parts"):
        runner.run({"x": np.zeros((4, 6))}, length=6)
    assert runner.usage.ceiling == 12


def test_a_real_allocator_without_memory() -> None:
    def hoard(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.empty(2**62, dtype=torch.uint8),)

    runner = make_runner(hoard, received=(), returned=(HIDDEN,))
    with pytest.raises(JobFailed, match="can't allocate memory"):
        runner.run({"x": np.zeros((2, 6))}, length=6)
    assert runner.usage.out_of_memory == 2


def test_other_errors_pass() -> None:
    def fail(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs["x"] @ inputs["x"],)

    runner = make_runner(fail, received=(), returned=(HIDDEN,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        runner.run({"x": np.zeros((2, 6))}, length=6)
    with pytest.raises(ValueError, match="returned 1 tensors instead of 2"):
        make_runner(lambda inputs, received: (inputs["x"],), received=(), returned=(HIDDEN, HIDDEN)).run(
            {"x": np.zeros((2, 6))}
        )


def test_named_results_and_precision() -> None:
    seen: dict[str, torch.dtype] = {}

    def forward(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> dict[str, Tensor]:
        seen.update({name: tensor.dtype for name, tensor in inputs.items()})
        assert torch.is_inference_mode_enabled()
        return {"label": inputs["input_ids"][:, 0] > 3, "state": inputs["pixel_values"], "hidden": received[0]}

    returned = {
        "state": TensorSpec(dtype="bfloat16", dims=(ROWS, WIDTH)),
        "label": TensorSpec(dtype="bool", dims=(ROWS,)),
        "hidden": TensorSpec(dtype="bfloat16", dims=(ROWS,)),
    }
    runner = make_runner(forward, received=(returned["hidden"],), returned=returned, dtype="bfloat16")
    ids = np.broadcast_to(np.array([[5], [1]]), (2, 3))  # neither writable nor contiguous
    hidden = np.array([1.5, -2], ml_dtypes.bfloat16)[::-1]
    result = runner.run({"input_ids": ids, "pixel_values": np.ones((2, 4), np.float32)}, (hidden,))
    assert isinstance(result, dict)
    assert seen == {"input_ids": torch.int64, "pixel_values": torch.bfloat16}
    assert list(result) == ["state", "label", "hidden"]
    assert result["label"].tolist() == [True, False]
    assert result["state"].dtype == result["hidden"].dtype == ml_dtypes.bfloat16
    assert result["hidden"].tolist() == [-2, 1.5]


def test_calls_take_turns_and_every_thread_has_its_cores() -> None:
    running, found = threading.Semaphore(1), set()

    def forward(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert running.acquire(blocking=False), "two calls at once"
        found.add(torch.get_num_threads())
        threading.Event().wait(0.01)
        running.release()
        return (inputs["x"],)

    runner = make_runner(forward, received=(), returned=(HIDDEN,), threads=3)
    with ThreadPoolExecutor(4) as pool:
        for value in [pool.submit(runner.run, {"x": np.zeros((2, 6))}) for _ in range(8)]:
            value.result()
    assert found == {3}
    assert runner.usage.device_peak == 0


def slow(forward: Crowded) -> Callable[[dict[str, Tensor], tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def delayed(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        result = forward(inputs, received)
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        return tuple(tensor * 1 for tensor in result)

    return delayed


@pytest.mark.gpu
@pytest.mark.parametrize("limit", [64, 8, 5])
def test_streams_wait_for_each_other(limit: int) -> None:
    """With the GPU kept busy before and after, a copy that does not wait would carry what is not computed yet."""
    device = find_device()
    runner = make_runner(slow(Crowded(limit)), device)
    expected = run(make_runner(Crowded()), 64, 128)
    for _ in range(5):
        assert equal(run(runner, 64, 128), expected)
    assert runner.usage.device_peak > 0


@pytest.mark.gpu
def test_threads_share_a_gpu() -> None:
    device = find_device()
    expected = run(make_runner(Crowded()), 16, 32)
    runners = [make_runner(slow(Crowded(3)), device), make_runner(slow(Crowded()), device)]
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(run, runners[number % 2], 16, 32) for number in range(12)]:
            assert equal(result.result(), expected)


@pytest.mark.gpu
def test_gpu_without_memory_is_halved_in_place() -> None:
    torch.cuda.empty_cache()
    share = torch.cuda.mem_get_info()[0] // 3

    def greedy(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.empty(len(inputs["x"]) * share, dtype=torch.uint8, device="cuda")
        return (inputs["x"] * 2,)

    runner = make_runner(greedy, find_device(), received=(), returned=(HIDDEN,))
    values = np.arange(8 * 3 * 4, dtype=np.float32).reshape(8, 3, 4)
    (result,) = runner.run({"x": values}, length=3)
    assert np.array_equal(result, values * 2)
    assert runner.usage.out_of_memory == 2
    assert runner.usage.ceiling == 6
    assert runner.usage.device_peak >= 2 * share
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_bfloat16_on_a_gpu() -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    values = np.random.default_rng(0).standard_normal((8, 32, 256)).astype(np.float32)
    spec = TensorSpec(dtype="bfloat16", dims=(ROWS, LENGTH, (256, 0, 0, 0)))

    def product(where: str) -> Forward:
        placed = weight.to(where, torch.bfloat16)
        return lambda inputs, received: (inputs["x"] @ placed + received[0],)

    received = (values.astype(ml_dtypes.bfloat16),)
    results = []
    for device in (CPU, find_device()):
        runner = make_runner(product(device.kind), device, received=(spec,), returned=(spec,), dtype="bfloat16")
        result = runner.run({"x": values}, received, length=32)
        assert isinstance(result, tuple)
        assert result[0].dtype == ml_dtypes.bfloat16
        results.append(result[0].astype(np.float32))
    np.testing.assert_allclose(results[0], results[1], rtol=0.02, atol=0.3)
