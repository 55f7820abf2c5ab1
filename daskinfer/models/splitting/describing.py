"""What traces of a model's forward say: its outputs, its layers, and what crosses a cut between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from daskinfer.models.splitting.fitting import fit_flops, fit_structure, fit_tensor, fit_tensors
from daskinfer.models.splitting.skeleton import name_in_snapshot
from daskinfer.models.splitting.standins import state_names
from daskinfer.models.splitting.structure import Unsupported
from daskinfer.models.splitting.tracing import Leaf, Trace
from daskinfer.models.tasks.kinds import find_problem
from daskinfer.models.units import Unit
from daskinfer.spec.outline import Carried, Event, InputArray, LayerOutline, Outline, TensorSpec

# Rows and length that the sizes of possible cuts are compared at.
_TYPICAL = (16, 128)


def describe_traces(
    model: nn.Module,
    units: Mapping[str, Unit],
    inputs: tuple[InputArray, ...],
    shapes: Sequence[tuple[int, int]],
    traces: Sequence[Trace],
    task: str,
    dtype: str,
) -> Outline:
    """Return the outline that traces of a model at several shapes show, unproved.

    Parameters
    ----------
    model
        The module that was traced.
    units
        Its units with state, by path.
    inputs
        Arrays that its forward takes.
    shapes
        (rows, length) of each trace.
    traces
        What was seen.
    task, dtype
        What it was built for, and its precision; recorded.

    Raises
    ------
    Unsupported
        Where no output can be written.

    Examples
    --------
    >>> import torch
    >>> from contextlib import nullcontext
    >>> from daskinfer.models.splitting.fitting import FIXED_SHAPES
    >>> from daskinfer.models.splitting.tracing import trace_forward
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    >>> units = {path: Unit(path, is_block=True) for path in ("0", "1")}
    >>> batches = [{"input": torch.zeros(rows, 2)} for rows, _ in FIXED_SHAPES]
    >>> traces = [trace_forward(model, units, batch, nullcontext) for batch in batches]
    >>> takes = (InputArray(name="input", dtype="float32", shape=(2,)),)
    >>> outline = describe_traces(model, units, takes, FIXED_SHAPES, traces, "forward", "float32")
    >>> [layer.units for layer in outline.layers], outline.outputs
    ([('0',), ('1',)], {'output': TensorSpec(dtype='float32', dims=((0, 1, 0, 0), (3, 0, 0, 0)))})
    """
    shared = {name_in_snapshot(model, name) for trace in traces for name in trace.shared}
    outputs, left_out = _fit_outputs(traces, shapes)
    whole = Outline(
        architecture=type(getattr(model, "model", model)).__name__,
        task=task,
        dtype=dtype,
        inputs=inputs,
        events=(),
        layers=(),
        shared=tuple(sorted(shared)),
        outputs=outputs,
        left_out=left_out,
    )
    try:
        return _cut(model, units, shapes, traces, whole)
    except Unsupported as error:
        return _leave_whole(model, units, shapes, traces, whole, str(error))


def read_by(model: nn.Module, units: Mapping[str, Unit], traces: Sequence[Trace]) -> frozenset[str]:
    """Return the names in the snapshot of all tensors that traces of a model read.

    Examples
    --------
    >>> import torch
    >>> from contextlib import nullcontext
    >>> from daskinfer.models.splitting.tracing import trace_forward
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    >>> units = {path: Unit(path, is_block=True) for path in ("0", "1")}
    >>> trace = trace_forward(model, units, {"input": torch.zeros(4, 2)}, nullcontext)
    >>> sorted(read_by(model, units, [trace]))
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    shared = {name_in_snapshot(model, name) for trace in traces for name in trace.shared}
    return frozenset({*shared, *_tensors_of(model, _units_of(traces, units))})


def _units_of(traces: Sequence[Trace], units: Iterable[str]) -> tuple[str, ...]:
    """Return the units that forwards ran; where the path follows the input, others may need what none of these did."""
    paths = [[call.unit for call in trace.calls] for trace in traces]
    return _used_units(traces, paths[0] if all(path == paths[0] for path in paths) else units)


def _fit_outputs(
    traces: Sequence[Trace], shapes: Sequence[tuple[int, int]]
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Return the outputs by name, and why others are left out, where the model says that some may be."""
    if traces[0].left_out is None:
        return dict(zip(_name_outputs(traces[0].structure), fit_tensors(traces, shapes), strict=True)), {}
    places = [{name: number for number, name in enumerate(_name_outputs(trace.structure))} for trace in traces]
    outputs: dict[str, TensorSpec] = {}
    left_out = {name: reason for trace in traces for name, reason in (trace.left_out or {}).items()}
    for name in dict.fromkeys(name for place in places for name in place):
        if name in left_out:
            continue
        if any(name not in place for place in places):
            left_out[name] = "comes for some inputs only"
            continue
        pairs = [(trace, place[name]) for trace, place in zip(traces, places, strict=True)]
        try:
            spec = fit_tensor(
                [trace.dtypes[number] for trace, number in pairs],
                [trace.shapes[number] for trace, number in pairs],
                shapes,
            )
        except Unsupported as error:
            left_out[name] = str(error)
            continue
        problem = find_problem(spec)
        if problem is None:
            outputs[name] = spec
        else:
            left_out[name] = problem
    if not outputs:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items()) or "there are none"
        raise Unsupported(f"task forward cannot write the model's outputs: {reasons}")
    return outputs, left_out


def _cut(
    model: nn.Module,
    units: Mapping[str, Unit],
    shapes: Sequence[tuple[int, int]],
    traces: Sequence[Trace],
    whole: Outline,
) -> Outline:
    """Return the outline with a layer for every block; `Unsupported` says why there is no cut."""
    names = [call.unit for call in traces[0].calls]
    blocks = [number for number, name in enumerate(names) if units[name].is_block]
    twice = next((names[number] for number in blocks if names.count(names[number]) > 1), None)
    if twice is not None:
        raise Unsupported(f"{twice} runs more than once: its layers share their weights")
    if len(blocks) < 2:
        raise Unsupported("it has no list of layers with weights of their own")
    _refuse_wayward(traces)
    written = {leaf for trace in traces for leaf in trace.written}
    repeated = {leaf for trace in traces for leaf in trace.repeated}
    events = tuple(
        Event(
            unit=name,
            structure=fit_structure([trace.calls[number].structure for trace in traces], shapes),
            leaves=fit_tensors([trace.calls[number] for trace in traces], shapes),
            written=tuple(sorted(leaf for event, leaf in written if event == number)),
            repeated=tuple(sorted(leaf for event, leaf in repeated if event == number)),
        )
        for number, name in enumerate(names)
    )
    borders = _choose_borders(events, traces, blocks)
    layers = []
    for number, (begin, end) in enumerate(pairwise([*borders, len(events)])):
        used = _used_units(traces, names[begin:end])
        layers.append(
            LayerOutline(
                name=name_in_snapshot(model, names[blocks[number]]),
                units=used,
                tensors=tuple(_tensors_of(model, used)),
                begin=begin,
                end=end,
                flops=fit_flops(traces, shapes, begin, end),
                cut=_find_cut(events, traces, begin),
            )
        )
    return whole.model_copy(update={"events": events, "layers": tuple(layers)})


def _refuse_wayward(traces: Sequence[Trace]) -> None:
    """Raise `Unsupported` where a forward cannot be followed from one call to the next."""
    obstacle = next((trace.obstacle for trace in traces if trace.obstacle), None)
    if obstacle is not None:
        raise Unsupported(obstacle)
    if any([call.unit for call in trace.calls] != [call.unit for call in traces[0].calls] for trace in traces):
        raise Unsupported("its forward takes another path for other inputs")


def _leave_whole(
    model: nn.Module,
    units: Mapping[str, Unit],
    shapes: Sequence[tuple[int, int]],
    traces: Sequence[Trace],
    whole: Outline,
    problem: str,
) -> Outline:
    """Return the outline with one layer that holds whatever any of the forwards ran."""
    used = _units_of(traces, units)
    layer = LayerOutline(
        name=whole.architecture,
        units=used,
        tensors=tuple(_tensors_of(model, used)),
        begin=0,
        end=0,
        flops=fit_flops(traces, shapes, 0, None),
        cut=(),
    )
    return whole.model_copy(update={"layers": (layer,), "uncut": problem})


def _used_units(traces: Sequence[Trace], called: Iterable[str]) -> tuple[str, ...]:
    used = dict.fromkeys(called)
    used |= dict.fromkeys(inner for trace in traces for name in list(used) for inner in trace.nested.get(name, ()))
    return tuple(used)


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
