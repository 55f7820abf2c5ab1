"""What computes a stage's linear layers: torch's own product, or oneDNN's where it was measured to be faster.

The choice between them is made in `daskinfer/spec/kernels.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from daskinfer.errors import JobFailed
from daskinfer.models.execution import onednn
from daskinfer.models.execution.runner import Forward, Tensors
from daskinfer.spec.kernels import LinearKernels

_SHAPES = {"small": (128, 256), "medium": (384, 1536), "large": (1024, 4096)}
"""(inputs, outputs) of the layer that stands for all of its size."""
_ROWS = 128
_ROUNDS = 11
# As a part of the largest number: what the order of a sum in float32 can make of it, and no other arithmetic.
_TOLERANCE = 2e-6


def measure_onednn() -> dict[str, float]:
    """Return how many times as fast as torch's own product oneDNN's is in float32, by size of the layer.

    One core computes, for less than half a second. A size at which the results differ by more than rounding is left
    out, and so are all where this build of torch has no oneDNN.

    Examples
    --------
    >>> speeds = measure_onednn()
    >>> speeds.keys() <= {"small", "medium", "large"}, all(speed > 0 for speed in speeds.values())
    (True, True)
    """
    multiply = onednn.find_linear()
    if multiply is None:
        return {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            found = {size: _compare(multiply, *shape) for size, shape in _SHAPES.items()}
    finally:
        torch.set_num_threads(before)
    return {size: round(speed, 3) for size, speed in found.items() if speed is not None}


def use_kernels(forward: Forward, kernels: LinearKernels) -> Forward:
    """Return a forward whose linear layers are computed as a plan says.

    Raises
    ------
    JobFailed
        The plan says oneDNN, and this process has none.

    Examples
    --------
    >>> weight = torch.ones(2, 3)
    >>> forward = lambda inputs, received: (functional.linear(inputs["x"], weight),)
    >>> use_kernels(forward, LinearKernels(small="torch"))({"x": torch.ones(1, 3)}, ())
    (tensor([[3., 3.]]),)
    """
    if "onednn" not in kernels.model_dump().values():
        return forward
    multiply = onednn.find_linear()
    if multiply is None:
        raise JobFailed(
            f"the plan computes linear layers by oneDNN, which torch {torch.__version__} on this worker does not have",
            hint="Start workers with the same build of torch as before, or start over: daskinfer run RECIPE --fresh.",
        )
    mode = _LinearMode(kernels, multiply)

    def run(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> Tensors:
        with mode:
            return forward(inputs, received)

    return run


class _LinearMode(TorchFunctionMode):
    """Computes linear layers by oneDNN where it can and the plan says so; all else goes its usual way."""

    def __init__(self, kernels: LinearKernels, multiply: onednn.Linear) -> None:
        super().__init__()
        self._kernels = kernels
        self._multiply = multiply

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = _READERS.get(func)
        if read is not None and (found := read(*args, **(kwargs or {}))) is not None:
            rows, weight, bias = found
            if onednn.takes(rows, weight, bias) and self._kernels.of(weight.numel()) == "onednn":
                return self._multiply(rows, weight, bias)
        return func(*args, **(kwargs or {}))


Operands = tuple[Tensor, Tensor, Tensor | None]


def _read_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operands:
    return input, weight, bias


def _read_addmm(*tensors: Any, **options: Any) -> Operands | None:
    """Return the operands of bias + rows @ weight, as GPT-2's layers have it; None of any other sum of products."""
    if len(tensors) != 3 or options or tensors[0].ndim != 1:
        return None
    bias, rows, weight = tensors
    return rows, weight.t(), bias


_READERS: dict[Any, Callable[..., Operands | None]] = {functional.linear: _read_linear, torch.addmm: _read_addmm}


def _compare(multiply: onednn.Linear, inputs: int, outputs: int) -> float | None:
    """Return by how much oneDNN is faster, the best of each over rounds in turn; None where it computes something else.

    Other programs make a round slower, and none faster.
    """
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((_ROWS, inputs), (outputs, inputs), outputs)
    )
    expected = functional.linear(rows, weight, bias)
    if not float((multiply(rows, weight, bias) - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max()):
        return None

    def seconds(product: onednn.Linear) -> float:
        started = time.perf_counter()
        product(rows, weight, bias)
        return time.perf_counter() - started

    times = [(seconds(functional.linear), seconds(multiply)) for _ in range(_ROUNDS)]
    return min(usual for usual, _ in times) / min(other for _, other in times)
