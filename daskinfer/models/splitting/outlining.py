"""The outline of a model, found without its weights: traced at a few shapes, cut at every layer, and proved.

Sizes follow from rows and length by fitting what was seen. Then a forward in stages on random weights must equal the
whole model's bit for bit, or the model is said to have no cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.module_state import ModuleState
from daskinfer.models.splitting.describing import describe_traces, read_by
from daskinfer.models.splitting.fitting import FIXED_SHAPES, SHAPES
from daskinfer.models.splitting.skeleton import Skeleton, name_in_snapshot
from daskinfer.models.splitting.standins import fake_weights, random_weights, state_names
from daskinfer.models.splitting.structure import Unsupported, flatten
from daskinfer.models.splitting.tracing import Trace, trace_forward
from daskinfer.models.units import Unit, find_units
from daskinfer.spec.outline import InputArray, LayerOutline, Outline

_PROOFS = ((3, 9), (2, 16))
# Lengths that show what short rows do not, the longest that a model takes first.
_LONG = (2039, 1021, 509, 251, 113, 53)
# What a forward raises on inputs that it does not take.
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)


def make_inputs(inputs: Sequence[InputArray], rows: int, length: int, dtype: str = "float32") -> dict[str, Tensor]:
    """Return inputs to try a model with: the same at every call; masks end early in every row but the first.

    Floating-point ones are in the model's precision, `dtype`.

    Examples
    --------
    >>> mask = InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2)
    >>> make_inputs([mask], rows=2, length=4)["attention_mask"].tolist()
    [[1, 1, 1, 1], [1, 1, 1, 0]]
    """
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    made = {}
    for array in inputs:
        shape = (rows, *(length if size is None else size for size in array.shape))
        kind = getattr(torch, array.dtype)
        if array.name.endswith("attention_mask"):
            ends = shape[-1] - torch.arange(rows) % max(1, shape[-1] // 2)
            made[array.name] = (torch.arange(shape[-1]) < ends[:, None]).to(kind)
        elif kind.is_floating_point:
            made[array.name] = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        else:
            made[array.name] = torch.randint(0, array.bound or 2, shape, generator=generator).to(kind)
    return made


def make_outline(model: nn.Module, inputs: Sequence[InputArray], *, task: str, dtype: str) -> Outline:
    """Trace a model and return its outline.

    Parameters
    ----------
    model
        The module to cut, its parameters on the meta device, its buffers real.
    inputs
        Arrays that its forward takes by name.
    task
        What it was built for; recorded.
    dtype
        Precision of its parameters.

    Raises
    ------
    CheckpointError
        Where the model cannot run even whole on such inputs.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(*(nn.Linear(4, 4, device="meta") for _ in range(2)))
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = model
    ...     def forward(self, x):
    ...         return self.layers(x)
    >>> x = InputArray(name="x", dtype="float32", shape=(4,))
    >>> outline = make_outline(Model(), [x], task="forward", dtype="float32")
    >>> [layer.name for layer in outline.layers], outline.layers[1].cut[0].tensor.dims
    (['layers.0', 'layers.1'], ((0, 1, 0, 0), (4, 0, 0, 0)))
    """
    units = _units_with_state(model)
    # What a forward leaves behind in the model decides the path of the next one, and tracing leaves fake tensors.
    state = ModuleState(model)
    has_length = any(None in array.shape for array in inputs)
    shapes = SHAPES if has_length else FIXED_SHAPES
    try:
        traces = [_trace(model, list(units), make_inputs(inputs, *shape, dtype), state) for shape in shapes]
        outline = describe_traces(model, units, tuple(inputs), shapes, traces, task, dtype)
    except Unsupported as error:
        raise CheckpointError(
            f"{type(model).__name__}: {error}",
            hint="Use a task that this model has, or wrap it in a module of your own: model.entry.",
        ) from error
    except _FAILURES as error:
        wanted = ", ".join(f"{array.name} {array.dtype}{list(array.shape)}" for array in inputs)
        raise CheckpointError(
            f"{type(model).__name__} fails on inputs such as it would get ({wanted}): {type(error).__name__}: {error}",
            hint="Check the task, model.dtype and, for forward, the shapes and types of the arrays.",
        ) from error
    if outline.uncut is None and has_length and _changes_when_long(model, list(units), outline, traces, state):
        return _make_whole(outline, "its sizes or its path change where rows are long")
    if outline.uncut is None and (problem := prove(model, outline)):
        return _make_whole(outline, problem)
    return outline


def tensors_read(model: nn.Module, inputs: Sequence[InputArray], dtype: str) -> frozenset[str]:
    """Return the names in the snapshot of the tensors that a model's forward reads, by a short and a longer input.

    Parameters
    ----------
    model
        The module, its parameters on the meta device, its buffers real.
    inputs
        Arrays that its forward takes by name.
    dtype
        Precision of its parameters.

    Raises
    ------
    CheckpointError
        Where it cannot run on such inputs.

    Examples
    --------
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "float32")
    >>> names = tensors_read(module, module.inputs, "float32")
    >>> "embeddings.word_embeddings.weight" in names, "pooler.dense.weight" in names
    (True, False)
    """
    units = _units_with_state(model)
    state = ModuleState(model)
    shapes = SHAPES if any(None in array.shape for array in inputs) else FIXED_SHAPES
    try:
        traces = [_trace(model, list(units), make_inputs(inputs, *shapes[place], dtype), state) for place in (0, -1)]
    except (Unsupported, *_FAILURES) as error:
        raise CheckpointError(
            f"{type(model).__name__} fails on inputs such as it would get: {type(error).__name__}: {error}",
            hint="Check the task and model.dtype.",
        ) from error
    return read_by(model, units, traces)


def prove(model: nn.Module, outline: Outline) -> str | None:
    """Cut the model at every layer and compare with the whole, bit for bit; return what is wrong, if anything is.

    Both run with the same random weights, which are in memory one unit at a time.

    Examples
    --------
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "float32")
    >>> prove(module, make_outline(module, module.inputs, task="embed", dtype="float32")) is None
    True
    """
    shared = [name for name in state_names(model) if name_in_snapshot(model, name) in set(outline.shared)]
    with random_weights(model, shared) as around, torch.inference_mode():
        state = ModuleState(model)
        try:
            return _find_difference(model, outline, around, state)
        finally:
            state.restore()


def _find_difference(
    model: nn.Module, outline: Outline, around: Callable[[str], Any], state: ModuleState
) -> str | None:
    last = len(outline.layers)
    for rows, length in _PROOFS:
        inputs = make_inputs(outline.inputs, rows, length, outline.dtype)
        state.restore()
        whole, _ = flatten(Skeleton(model, outline, 0, last, around).run(inputs, ()))
        if any(torch.isnan(value).any() for value in whole):
            return "it gives NaN on random weights, so that no cut can be proved"
        received: Any = ()
        for number, layer in enumerate(outline.layers):
            state.restore()
            try:
                received = Skeleton(model, outline, number, number + 1, around).run(inputs, received)
            except _FAILURES as error:
                return f"cut before and after {layer.name} it fails: {error}"
        if not all(map(torch.equal, whole, flatten(received)[0])):
            return "its output changes when it is cut"
    return None


def _changes_when_long(
    model: nn.Module, paths: list[str], outline: Outline, traces: Sequence[Trace], state: ModuleState
) -> bool:
    """Whether a long row shows that sizes or calls were told wrongly from short ones, by windows for example."""
    settings = getattr(getattr(model, "model", model), "config", None)
    most = getattr(settings, "max_position_embeddings", None)
    # A loop over the tokens would take minutes.
    loops = traces[0].operations < traces[2].operations
    for length in _LONG[-1:] if loops else _LONG:
        if isinstance(most, int) and 0 < most < length:
            continue
        try:
            trace = _trace_fake(model, paths, make_inputs(outline.inputs, 2, length, outline.dtype))
        except _FAILURES:
            continue  # more than the model has positions for, or it cannot run without values
        finally:
            state.restore()
        if [call.unit for call in trace.calls] != [event.unit for event in outline.events]:
            return True
        return any(
            call.shapes != [leaf.shape(2, length) for leaf in event.leaves]
            for call, event in zip(trace.calls, outline.events, strict=True)
        )
    return False


def _units_with_state(model: nn.Module) -> dict[str, Unit]:
    """Return the units that a snapshot stores anything of, each module once, by path."""
    found: dict[int, Unit] = {}
    for unit in find_units(model):
        module = model.get_submodule(unit.path)
        if state_names(module):
            found.setdefault(id(module), unit)
    return {unit.path: unit for unit in found.values()}


def _trace(model: nn.Module, paths: list[str], inputs: Mapping[str, Tensor], state: ModuleState) -> Trace:
    try:
        return _trace_fake(model, paths, inputs)
    except _FAILURES:
        # Some operations cannot be traced without values; what is wrong otherwise is raised again.
        state.restore()
        with random_weights(model, ()) as around:
            shared = trace_forward(model, paths, inputs, around).shared
        state.restore()
        with random_weights(model, shared) as around:
            return trace_forward(model, paths, inputs, around)
    finally:
        state.restore()


def _trace_fake(model: nn.Module, paths: list[str], inputs: Mapping[str, Tensor]) -> Trace:
    with fake_weights(model) as mode, mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
        return trace_forward(model, paths, fakes, nullcontext)


def _make_whole(outline: Outline, problem: str) -> Outline:
    """Return the outline of the same model with a single layer."""
    layers = outline.layers
    whole = LayerOutline(
        name=outline.architecture,
        units=tuple(dict.fromkeys(unit for layer in layers for unit in layer.units)),
        tensors=tuple(dict.fromkeys(name for layer in layers for name in layer.tensors)),
        begin=0,
        end=0,
        flops=(sum(layer.flops[0] for layer in layers), sum(layer.flops[1] for layer in layers)),
        cut=(),
    )
    return outline.model_copy(update={"events": (), "layers": (whole,), "uncut": problem})
