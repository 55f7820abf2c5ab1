"""Times of a model's layers on this machine's device, one layer in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median

import numpy as np
import torch
from torch import nn

from daskinfer.models.execution.stage import Read, Stage, load_stage
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.outlining import make_inputs
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tensors import Array, tensor_to_array
from daskinfer.spec.measured import MeasuredLayer, Timing
from daskinfer.spec.outline import Outline, TensorSpec
from daskinfer.spec.plan import Numerics, StagePlan
from daskinfer.spec.snapshot import Manifest

_MOST_RUNS = 6
_ENOUGH_SECONDS = 2.0
# Attributes that tell where a layer stands, not what it does.
_PLACES = ("idx", "index", "layer_id")


def measure_layers(
    request: TaskRequest,
    outline: Outline,
    manifest: Manifest,
    numerics: Numerics,
    read: Read,
    shapes: Sequence[tuple[int, int]],
    watch: Callable[[str, int, int], None],
) -> tuple[MeasuredLayer, ...]:
    """Load every layer by itself and time it on random activations.

    Of layers that are equal but for the values of their weights only the first is measured.

    Parameters
    ----------
    request
        The task.
    outline
        Its layers and cuts.
    manifest
        The snapshot.
    numerics
        Precision, device and cores.
    read
        Brings the bytes.
    shapes
        (rows, length) of the microbatches to try, the smallest first.
    watch
        Called with what is being measured, and how many of how many layers are done.
    """
    module = build_task(request, numerics.dtype)
    has_length = any(None in array.shape for array in outline.inputs)
    first: dict[Hashable, MeasuredLayer] = {}
    measured = []
    for number, layer in enumerate(outline.layers):
        kind = _identify(module, outline, number)
        equal = first.get(kind)
        if equal is not None:
            measured.append(equal.model_copy(update={"name": layer.name, "like": equal.name}))
            continue
        watch(f"measuring {layer.name}", number, len(outline.layers))
        plan = StagePlan(index=number, first=number, last=number + 1, parameter_bytes=0, share=1.0)
        stage = load_stage(
            request=request,
            outline=outline,
            manifest=manifest,
            stage=plan,
            numerics=numerics,
            read=read,
            check_rows=False,
        )
        timings = []
        for rows, length in shapes:
            linear, square = layer.flops
            flops = rows * (linear * length + square * length**2 if has_length else linear)
            seconds = _time_stage(stage, outline, number, rows, length)
            timings.append(Timing(rows=rows, length=length, flops=flops, seconds=seconds))
        # The next layer is not loaded beside this one.
        del stage
        fixed, rate = fit_times(timings)
        first[kind] = found = MeasuredLayer(
            name=layer.name, timings=tuple(timings), fixed_seconds=fixed, flops_per_second=rate
        )
        measured.append(found)
    return tuple(measured)


def fit_times(timings: Sequence[Timing]) -> tuple[float, float | None]:
    """Return the fixed seconds and the operations a second that fit times best, by their relative errors.

    The rate is None where the times do not grow with the operations.

    Examples
    --------
    >>> timings = [Timing(rows=1, length=1, flops=flops, seconds=0.1 + flops / 1000) for flops in (100, 200, 300)]
    >>> fixed, rate = fit_times(timings)
    >>> round(fixed, 3), round(rate)
    (0.1, 1000)
    """
    flops = np.array([timing.flops for timing in timings], float)
    seconds = np.array([timing.seconds for timing in timings], float)
    if len(set(flops)) > 1:
        slope, fixed = np.polyfit(flops, seconds, 1, w=1 / seconds)
        if slope > 0 and fixed >= 0:
            return float(fixed), float(1 / slope)
        if slope > 0:
            shares = flops / seconds
            return 0.0, float((shares**2).sum() / shares.sum())
    return float(np.median(seconds)), None


def _identify(module: TaskModule, outline: Outline, number: int) -> Hashable:
    """Return what two layers have in common that take the same time."""
    layer, following = outline.layers[number], outline.layers[number + 1 : number + 2]
    return (
        layer.flops,
        tuple(item.tensor for item in layer.cut),
        tuple(item.tensor for after in following for item in after.cut),
        len(following),
        tuple(_describe(module.get_submodule(unit)) for unit in layer.units),
    )


def _describe(unit: nn.Module) -> Hashable:
    return tuple(
        (
            path,
            type(part),
            tuple(
                (key, value)
                for key, value in sorted(vars(part).items())
                if isinstance(value, bool | int | float | str) and not any(place in key for place in _PLACES)
            ),
            tuple((name, tuple(tensor.shape)) for name, tensor in part.named_parameters(recurse=False)),
        )
        for path, part in unit.named_modules()
    )


def _time_stage(stage: Stage, outline: Outline, number: int, rows: int, length: int) -> float:
    """Return the median of a few runs; the first one, which sets things up, counts only where it is long enough."""
    inputs = {name: tensor_to_array(tensor) for name, tensor in make_inputs(outline.inputs, rows, length).items()}
    received = tuple(_make_array(item.tensor, rows, length) for item in outline.layers[number].cut)
    times: list[float] = []
    while len(times) < _MOST_RUNS and sum(times) < _ENOUGH_SECONDS:
        started = time.perf_counter()
        stage.run(inputs, received)
        times.append(time.perf_counter() - started)
    return median(times[1:] or times)


def _make_array(spec: TensorSpec, rows: int, length: int) -> Array:
    kind: torch.dtype = getattr(torch, spec.dtype)
    shape = spec.shape(rows, length)
    if kind.is_floating_point:
        generator = torch.Generator().manual_seed(0)
        return tensor_to_array(torch.randn(shape, generator=generator).to(kind))
    # Masks that hide nothing, and numbers that are always within bounds.
    return tensor_to_array(torch.full(shape, kind == torch.bool, dtype=kind))
