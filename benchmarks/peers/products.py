"""No peer but the limit: the products of the loop's own batches and nothing else, by the faster kernel of each shape."""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import Computation, build_module
from benchmarks.work import Work

Product = tuple[str, list[Any]]
"""Its kind, and shapes."""


def record(work: Work) -> None:
    """Write the shapes of all products, batch by batch."""
    import torch
    from torch.utils import _python_dispatch

    module = build_module(work, attn_implementation="eager")
    aten = torch.ops.aten
    batches: list[list[Product]] = []

    mode: Any = _python_dispatch.TorchDispatchMode

    class Recorder(mode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (aten.addmm.default, aten.mm.default):
                rows, weight = args[-2:]
                batches[-1].append(("linear", [*rows.shape, weight.shape[1]]))
            elif func is aten.linear.default:
                batches[-1].append(("linear", [args[0].numel() // args[0].shape[-1], *args[1].shape[::-1]]))
            elif func is aten.bmm.default:
                batches[-1].append(("bmm", [list(args[0].shape), list(args[1].shape)]))
            elif func is aten.convolution.default:
                batches[-1].append(("conv", [list(args[0].shape), list(args[1].shape), args[3], args[4]]))
            return func(*args, **(kwargs or {}))

    def forward(*arrays: Any) -> Any:
        batches.append([])
        with torch.inference_mode(), Recorder():
            return module(*map(torch.from_numpy, arrays)).numpy()

    Computation(work, forward)(work.read_rows())
    Path(work.folder, "products.json").write_text(json.dumps(batches))


def run(work: Work) -> None:
    """Compute them, in a process of one core for each core."""
    with ProcessPoolExecutor(work.cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_multiply_part, work), range(work.cores)))


def _multiply_part(work: Work, number: int) -> None:
    import torch

    torch.set_num_threads(1)
    batches = json.loads(Path(work.folder, "products.json").read_text())[number :: work.cores]
    with torch.inference_mode():
        multiply = _Multiplier({tuple(shapes[1:]) for batch in batches for kind, shapes in batch if kind == "linear"})
        work.mark_ready()
        for batch in batches:
            for product in batch:
                multiply(*product)


class _Multiplier:
    """Computes products of given shapes on numbers that it has at hand."""

    def __init__(self, weights: set[tuple[int, int]]) -> None:
        import torch

        self._torch = torch
        self._numbers = torch.randn(1 << 22)
        self._weights = {shape: torch.randn(shape[1], shape[0]) for shape in weights}
        self._faster = {shape: self._choose(weight) for shape, weight in self._weights.items()}

    def _choose(self, weight: Any) -> Any:
        usual = self._torch.nn.functional.linear
        operator = self._torch.ops.mkldnn._linear_pointwise
        rows = self._take([1024, weight.shape[1]])

        def onednn(rows: Any, weight: Any) -> Any:
            return operator(rows, weight, None, "none", [], "")

        def seconds(product: Any) -> float:
            times = []
            for _ in range(4):
                began = time.perf_counter()
                product(rows, weight)
                times.append(time.perf_counter() - began)
            return min(times)

        return min((usual, onednn), key=seconds)

    def _take(self, shape: list[int]) -> Any:
        size = self._torch.Size(shape).numel()
        if size > len(self._numbers):
            self._numbers = self._torch.randn(size)
        return self._numbers[:size].view(shape)

    def __call__(self, kind: str, shapes: list[Any]) -> None:
        if kind == "linear":
            weight = tuple(shapes[1:])
            self._faster[weight](self._take(shapes[:2]), self._weights[weight])
        elif kind == "bmm":
            self._torch.bmm(self._take(shapes[0]), self._take(shapes[1]))
        else:
            image, weight, stride, padding = shapes
            self._torch.conv2d(self._take(image), self._take(weight), stride=stride, padding=padding)


PEERS = (Peer("products", "the limit: its products alone", run, prepare=record, processes=2),)
