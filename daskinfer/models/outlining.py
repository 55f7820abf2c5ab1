"""The outline of a model, found without its weights: traced at a few shapes, cut at every layer, and proved.

Sizes follow from rows and length by fitting what was seen. Then a forward in stages on random weights must equal the
whole model's bit for bit, or the model is said to have no cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.skeleton import Skeleton, name_in_snapshot
from daskinfer.models.standins import fake_weights, random_weights, state_names
from daskinfer.models.structure import Unsupported, flatten
from daskinfer.models.tracing import Call, Leaf, Trace, trace_forward
from daskinfer.models.units import Unit, find_units
from daskinfer.spec.outline import Carried, Dim, Event, InputArray, LayerOutline, Outline, TensorSpec

# Rows and lengths that tell a constant from a multiple of either or both; the last one checks the others.
_SHAPES = ((2, 11), (3, 11), (2, 14), (3, 14), (5, 17))
_FIXED_SHAPES = ((2, 1), (3, 1), (5, 1))
_PROOFS = ((3, 9), (2, 16))
# Rows and length that the sizes of possible cuts are compared at.
_TYPICAL = (16, 128)


def make_inputs(inputs: Sequence[InputArray], rows: int, length: int, dtype: str = "float32") -> dict[str, Tensor]:
    """Return inputs to try a model with: the same at every call; masks end early in every row but the first.

    Floating-point ones are in the model's precision, `dtype`.
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
    """
    units = _units_with_state(model)
    has_length = any(None in array.shape for array in inputs)
    shapes = _SHAPES if has_length else _FIXED_SHAPES
    try:
        traces = [_trace(model, list(units), make_inputs(inputs, *shape, dtype)) for shape in shapes]
        outline = _describe(model, units, tuple(inputs), shapes, traces, task, dtype)
    except Unsupported as error:
        raise CheckpointError(
            f"{type(model).__name__}: {error}",
            hint="Use a task that this model has, or wrap it in a module of your own: model.entry.",
        ) from error
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        wanted = ", ".join(f"{array.name} {array.dtype}{list(array.shape)}" for array in inputs)
        raise CheckpointError(
            f"{type(model).__name__} fails on inputs such as it would get ({wanted}): {type(error).__name__}: {error}",
            hint="Check the task, model.dtype and, for forward, the shapes and types of the arrays.",
        ) from error
    if outline.uncut is None and (problem := prove(model, outline)):
        return _make_whole(outline, problem)
    return outline


def prove(model: nn.Module, outline: Outline) -> str | None:
    """Cut the model at every layer and compare with the whole, bit for bit; return what is wrong, if anything is.

    Both run with the same random weights, which are in memory one unit at a time.
    """
    last = len(outline.layers)
    shared = [name for name in state_names(model) if name_in_snapshot(model, name) in set(outline.shared)]
    with random_weights(model, shared) as around, torch.inference_mode():
        for rows, length in _PROOFS:
            inputs = make_inputs(outline.inputs, rows, length, outline.dtype)
            whole, _ = flatten(Skeleton(model, outline, 0, last, around).run(inputs, ()))
            if any(torch.isnan(value).any() for value in whole):
                return "it gives NaN on random weights, so that no cut can be proved"
            received: Any = ()
            for number, layer in enumerate(outline.layers):
                try:
                    received = Skeleton(model, outline, number, number + 1, around).run(inputs, received)
                except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
                    return f"cut before and after {layer.name} it fails: {error}"
            if not all(map(torch.equal, whole, flatten(received)[0])):
                return "its output changes when it is cut"
    return None


def _units_with_state(model: nn.Module) -> dict[str, Unit]:
    """Return the units that a snapshot stores anything of, each module once, by path."""
    found: dict[int, Unit] = {}
    for unit in find_units(model):
        module = model.get_submodule(unit.path)
        if state_names(module):
            found.setdefault(id(module), unit)
    return {unit.path: unit for unit in found.values()}


def _trace(model: nn.Module, paths: list[str], inputs: Mapping[str, Tensor]) -> Trace:
    try:
        with fake_weights(model) as mode, mode:
            fakes = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
            return trace_forward(model, paths, fakes, nullcontext)
    except RuntimeError:
        # Some operations cannot be traced without values.
        with random_weights(model, ()) as around:
            shared = trace_forward(model, paths, inputs, around).shared
        with random_weights(model, shared) as around:
            return trace_forward(model, paths, inputs, around)


def _describe(
    model: nn.Module,
    units: Mapping[str, Unit],
    inputs: tuple[InputArray, ...],
    shapes: Sequence[tuple[int, int]],
    traces: Sequence[Trace],
    task: str,
    dtype: str,
) -> Outline:
    names = [call.unit for call in traces[0].calls]
    if any([call.unit for call in trace.calls] != names for trace in traces):
        raise Unsupported("its forward takes another path for other inputs")
    events = tuple(
        Event(
            unit=name,
            structure=_fit_structure([trace.calls[number].structure for trace in traces], shapes),
            leaves=_fit_tensors([trace.calls[number] for trace in traces], shapes),
        )
        for number, name in enumerate(names)
    )
    blocks = [number for number, name in enumerate(names) if units[name].is_block]
    twice = next((names[number] for number in blocks if names.count(names[number]) > 1), None)
    uncut = None
    if twice is not None:
        uncut = f"{twice} runs more than once: its layers share their weights"
    elif len(blocks) < 2:
        uncut = "it has no list of layers with weights of their own"
    borders = [0] if uncut else _choose_borders(events, traces, blocks)
    architecture = type(getattr(model, "model", model)).__name__
    layers = []
    for number, (begin, end) in enumerate(pairwise([*borders, len(events)])):
        used = dict.fromkeys(names[begin:end])
        used |= dict.fromkeys(inner for trace in traces for name in list(used) for inner in trace.nested.get(name, ()))
        layers.append(
            LayerOutline(
                name=architecture if uncut else name_in_snapshot(model, names[blocks[number]]),
                units=tuple(used),
                tensors=tuple(_tensors_of(model, used)),
                begin=begin,
                end=end,
                flops=_fit_flops(traces, shapes, begin, end),
                cut=_find_cut(events, traces, begin),
            )
        )
    return Outline(
        architecture=architecture,
        task=task,
        dtype=dtype,
        inputs=inputs,
        events=events,
        layers=tuple(layers),
        shared=tuple(sorted({name_in_snapshot(model, name) for trace in traces for name in trace.shared})),
        outputs=dict(zip(_name_outputs(traces[0].structure), _fit_tensors(traces, shapes), strict=True)),
        uncut=uncut,
    )


def _make_whole(outline: Outline, problem: str) -> Outline:
    """Return the outline of the same model with a single layer."""
    layers = outline.layers
    whole = LayerOutline(
        name=outline.architecture,
        units=tuple(dict.fromkeys(unit for layer in layers for unit in layer.units)),
        tensors=tuple(dict.fromkeys(name for layer in layers for name in layer.tensors)),
        begin=0,
        end=len(outline.events),
        flops=(sum(layer.flops[0] for layer in layers), sum(layer.flops[1] for layer in layers)),
        cut=(),
    )
    return outline.model_copy(update={"layers": (whole,), "uncut": problem})


def _tensors_of(model: nn.Module, units: Iterable[str]) -> Iterator[str]:
    prefixes = tuple(f"{unit}." for unit in units)
    for name in state_names(model):
        if name.startswith(prefixes):
            yield name_in_snapshot(model, name)


def _choose_borders(events: Sequence[Event], traces: Sequence[Trace], blocks: Sequence[int]) -> list[int]:
    """Return the first event of every layer: between two blocks, where the least has to cross."""

    def weigh(border: int) -> int:
        return sum(item.tensor.nbytes(*_TYPICAL) for item in _find_cut(events, traces, border))

    return [0, *(min(range(before + 1, block + 1), key=weigh) for before, block in pairwise(blocks))]


def _find_cut(events: Sequence[Event], traces: Sequence[Trace], border: int) -> tuple[Carried, ...]:
    """Return what was made before an event and is needed from there on."""
    needed: set[Leaf] = set()
    for trace in traces:
        needed |= trace.outputs | trace.deciding
        needed = needed.union(*(call.uses for call in trace.calls[border:]))
    return tuple(
        Carried(event=event, leaf=leaf, tensor=events[event].leaves[leaf])
        for event, leaf in sorted(needed)
        if event < border
    )


def _fit_tensors(seen: Sequence[Call | Trace], shapes: Sequence[tuple[int, int]]) -> tuple[TensorSpec, ...]:
    if any(len(each.shapes) != len(seen[0].shapes) for each in seen):
        raise Unsupported("the number of its outputs depends on the input")
    specs = []
    for position, dtype in enumerate(seen[0].dtypes):
        sizes = zip(*(each.shapes[position] for each in seen), strict=True)
        specs.append(TensorSpec(dtype=dtype, dims=tuple(_fit(size, shapes) for size in sizes)))
    return tuple(specs)


def _fit(values: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Dim:
    """Return a size as a function of rows and length."""
    terms = [(1, rows, length, rows * length) for rows, length in shapes]
    if shapes is _FIXED_SHAPES:
        terms = [(1, rows, 0, 0) for rows, _ in shapes]
    found = (
        np.rint(np.linalg.lstsq(np.array(terms, float), np.array(values, float), rcond=None)[0]).astype(int).tolist()
    )
    if any(sum(map(int.__mul__, term, found)) != value for term, value in zip(terms, values, strict=True)):
        raise Unsupported("the size of an output does not follow from the number of rows and their length")
    return (found[0], found[1], found[2], found[3])


def _fit_structure(structures: Sequence[Any], shapes: Sequence[tuple[int, int]]) -> Any:
    first = structures[0]
    if isinstance(first, list) and first and first[0] == "number":
        return ["number", _fit([structure[1] for structure in structures], shapes)]
    if isinstance(first, list):
        if any(len(structure) != len(first) for structure in structures):
            raise Unsupported("the number of its outputs depends on the input")
        return [_fit_structure(parts, shapes) for parts in zip(*structures, strict=True)]
    if isinstance(first, dict):
        return {key: _fit_structure([structure[key] for structure in structures], shapes) for key in first}
    if any(structure != first for structure in structures):
        raise Unsupported("an output that is no tensor depends on the input")
    return first


def _fit_flops(traces: Sequence[Trace], shapes: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    def measure(number: int) -> float:
        trace, (rows, _) = traces[number], shapes[number]
        after = trace.trailing_flops if end == len(trace.calls) else 0
        return (sum(call.flops for call in trace.calls[begin:end]) + after) / rows

    if shapes is _FIXED_SHAPES:
        return round(measure(0)), 0
    short, long = shapes[0][1], shapes[2][1]
    square = max(0.0, (measure(2) / long - measure(0) / short) / (long - short))
    return round(measure(0) / short - square * short), round(square)


def _name_outputs(structure: Any, name: str = "") -> list[str]:
    """Return a name for every tensor of the output, in order."""
    if structure is None:
        return []
    if isinstance(structure, int):
        return [name or "output"]
    kind, *parts = structure
    if kind in ("value", "number"):
        return []
    inner = parts[-1].items() if kind in ("dict", "output") else enumerate(parts)
    prefix = name or ("" if kind in ("dict", "output") else "output")
    return [found for key, part in inner for found in _name_outputs(part, f"{prefix}_{key}" if prefix else str(key))]
