"""Skeleton forward: every stage runs the model's own `forward()`, with stand-ins for the units it does not own.

Units before the stage hand out what was received, or NaN where it is not needed; the first unit after it ends the
forward. So masks, positions and whatever else the forward computes by itself come out as in the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.models.splitting.standins import fill_blank, state_names
from daskinfer.models.splitting.structure import flatten, unflatten
from daskinfer.models.splitting.tracing import Interception, Leaf
from daskinfer.spec.outline import Dim, InputArray, Outline


class Stop(Exception):
    """Ends a forward where the stage ends."""


class Skeleton:
    """The layers [first, last) of a model.

    Parameters
    ----------
    model
        The whole model's modules.
    outline
        What was found of it.
    first, last
        Layers of the stage.
    around
        Context manager around every unit that runs, given its path.

    Examples
    --------
    >>> from daskinfer.models.splitting.outlining import make_outline
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "float32")
    >>> outline = make_outline(module, module.inputs, task="embed", dtype="float32")
    >>> Skeleton(module, outline, first=0, last=9)
    Traceback (most recent call last):
        ...
    ValueError: layers 0 to 9 of a model with 4
    """

    def __init__(
        self,
        model: nn.Module,
        outline: Outline,
        first: int,
        last: int,
        around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if not 0 <= first < last <= len(outline.layers):
            raise ValueError(f"layers {first} to {last} of a model with {len(outline.layers)}")
        self.model = model
        self._outline = outline
        self._begin = outline.layers[first].begin
        self._end = outline.layers[last - 1].end
        self._arriving: list[Leaf] = [(item.event, item.leaf) for item in outline.layers[first].cut]
        self._leaving: list[Leaf] = []
        if last < len(outline.layers):
            self._leaving = [(item.event, item.leaf) for item in outline.layers[last].cut]
        self._around = around
        # A model that cannot be cut runs as it is, whatever its forward calls.
        self._is_whole = outline.uncut is not None
        paths = {event.unit for event in outline.events}
        if self._is_whole and around is not nullcontext:
            paths = {unit for layer in outline.layers for unit in layer.units}
        self._interception = Interception(model, paths, self._call)
        self._inside = False

    def run(self, inputs: Mapping[str, Tensor], received: tuple[Tensor, ...]) -> Any:
        """Run the stage.

        Parameters
        ----------
        inputs
            The model's inputs, the same for every stage.
        received
            What the stage before returned; empty for the first.

        Returns
        -------
        tuple of Tensor
            What crosses to the next stage; on the last stage the model's own output.

        Raises
        ------
        RuntimeError
            Where the forward calls other units than its outline says.
        """
        self._cursor = 0
        self._values = dict(zip(self._arriving, received, strict=True))
        some = next(iter(inputs.values()))
        self._size = (some.shape[0], padded_length(inputs, self._outline.inputs))
        self._device = some.device
        try:
            with self._interception:
                output = self.model(**inputs)
        except Stop:
            return tuple(self._values[leaf] for leaf in self._leaving)
        finally:
            self._values = {}
        if not self._is_whole and (self._cursor != len(self._outline.events) or self._end != self._cursor):
            raise RuntimeError(f"the forward ended after {self._cursor} of {len(self._outline.events)} calls")
        return output

    def _call(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._inside or self._is_whole:
            with self._around(path):
                return forward(*args, **kwargs)
        number, self._cursor = self._cursor, self._cursor + 1
        if number >= len(self._outline.events) or self._outline.events[number].unit != path:
            raise RuntimeError(f"call {number} of the forward goes to {path}, where its outline says otherwise")
        if number >= self._end:
            raise Stop
        if number < self._begin:
            return self._stand_in(number)
        self._inside = True
        try:
            with self._around(path):
                output = forward(*args, **kwargs)
        finally:
            self._inside = False
        wanted = [leaf for leaf in self._leaving if leaf[0] == number]
        if wanted:
            leaves, _ = flatten(output)
            repeated = self._outline.events[number].repeated
            for leaf in wanted:
                value = leaves[leaf[1]]
                # What follows changes it in place, and does so again in the next stage.
                self._values[leaf] = value.clone() if leaf[1] in repeated else value
        return output

    def _stand_in(self, number: int) -> Any:
        event = self._outline.events[number]
        leaves = []
        for position, spec in enumerate(event.leaves):
            value = self._values.get((number, position))
            if value is None:
                value = fill_blank(spec.shape(*self._size), getattr(torch, spec.dtype), self._device)
            if position in event.written:
                # Every element needs a place of its own, in memory that nobody else reads.
                value = value.clone(memory_format=torch.contiguous_format)
                if (number, position) in self._values and position not in event.repeated:
                    self._values[number, position] = value
            leaves.append(value)
        return unflatten(event.structure, leaves, self._number)

    def _number(self, dim: Dim) -> int:
        rows, length = self._size
        return dim[0] + dim[1] * rows + dim[2] * length + dim[3] * rows * length


def owned_names(model: nn.Module, outline: Outline, first: int, last: int) -> list[str]:
    """Return the names, in the model's `state_dict`, of all tensors that a stage needs.

    Examples
    --------
    >>> from daskinfer.models.splitting.outlining import make_outline
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "float32")
    >>> outline = make_outline(module, module.inputs, task="embed", dtype="float32")
    >>> owned_names(module, outline, first=3, last=4)[0]
    'model.encoder.layer.3.attention.self.query.weight'
    """
    units = tuple(f"{unit}." for layer in outline.layers[first:last] for unit in layer.units)
    shared = frozenset(outline.shared)
    return [name for name in state_names(model) if name.startswith(units) or name_in_snapshot(model, name) in shared]


def name_in_snapshot(model: nn.Module, name: str) -> str:
    """Return what a tensor of a model is called in a snapshot.

    Examples
    --------
    >>> name_in_snapshot(nn.Linear(2, 2), "weight")
    'weight'
    """
    rename: Callable[[str], str] | None = getattr(model, "stored_name", None)
    return name if rename is None else rename(name)


def padded_length(inputs: Mapping[str, Any], arrays: Iterable[InputArray]) -> int:
    """Return the padded length of a microbatch in tokens; 1 where all rows have the same shape.

    Parameters
    ----------
    inputs
        The model's inputs, (rows, ...) each.
    arrays
        What is known of them.

    Examples
    --------
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,))
    >>> padded_length({"input_ids": torch.zeros(3, 17)}, [ids]), padded_length({}, [])
    (17, 1)
    """
    for array in arrays:
        if None in array.shape:
            return int(inputs[array.name].shape[1 + array.shape.index(None)])
    return 1
