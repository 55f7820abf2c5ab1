"""One forward of a model under observation: which units are called in what order, and what each of them needs.

Every operation outside the units is watched, so that a tensor's origin is known as the set of calls whose outputs it
was computed from. That tells what must cross a cut, whatever its values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from daskinfer.models.splitting.structure import Unsupported, flatten

Leaf = tuple[int, int]
"""(number of a call, number of a tensor in its output)."""

_aten = torch.ops.aten
_count_attention: Callable[..., Any] = sdpa_flop_count
# These take a tensor for its shape alone.
_SHAPE_ONLY = {
    _aten.zeros_like,
    _aten.ones_like,
    _aten.full_like,
    _aten.empty_like,
    _aten.rand_like,
    _aten.randn_like,
    _aten.new_zeros,
    _aten.new_ones,
    _aten.new_full,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten.sym_size,
}
# These turn values into control flow.
_DECIDING = {_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero}


@dataclass(slots=True)
class Call:
    """One call of a unit."""

    unit: str
    """Its path."""
    uses: frozenset[Leaf]
    """What its arguments were computed from."""
    structure: Any
    """How its output nests."""
    shapes: list[tuple[int, ...]]
    """Shapes of its output's tensors."""
    dtypes: list[str]
    """Their element types."""
    flops: int = 0
    """Matrix operations inside, and between it and the call before."""


@dataclass(slots=True)
class Trace:
    """What one forward did."""

    calls: list[Call] = field(default_factory=list)
    """In order."""
    shared: set[str] = field(default_factory=set)
    """Tensors of the model that are read outside the unit they belong to."""
    nested: dict[str, set[str]] = field(default_factory=dict)
    """Unit -> units that it calls itself."""
    deciding: set[Leaf] = field(default_factory=set)
    """What the forward's own control flow looks at."""
    written: set[Leaf] = field(default_factory=set)
    """Tensors of calls that are changed in place after the call."""
    repeated: set[Leaf] = field(default_factory=set)
    """Those of them that are changed outside the units."""
    obstacle: str | None = None
    """Why the forward cannot be followed, where it cannot: a unit returns what is no tensor."""
    outputs: frozenset[Leaf] = frozenset()
    """What the output was computed from."""
    structure: Any = None
    """How the output nests."""
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Shapes of the output's tensors."""
    dtypes: list[str] = field(default_factory=list)
    """Their element types."""
    left_out: dict[str, str] | None = None
    """What the model itself says that it does not return, and why; None where it returns all."""
    operations: int = 0
    """How many operations there were, inside units and outside."""
    trailing_flops: int = 0
    """Matrix operations after the last call."""


class Interception:
    """Sends every call of some units through `handle(path, forward, args, kwargs)` while it is entered.

    Their `forward` is replaced and not the modules themselves: models read attributes of their layers.

    Examples
    --------
    >>> from torch import nn
    >>> model, calls = nn.Sequential(nn.ReLU(), nn.Tanh()), []
    >>> def handle(path, forward, args, kwargs):
    ...     calls.append(path)
    ...     return forward(*args, **kwargs)
    >>> with Interception(model, ["1"], handle):
    ...     _ = model(torch.zeros(1))
    >>> calls
    ['1']
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], handle: Callable[..., Any]) -> None:
        found = {id(module): (path, module) for path in paths for module in [model.get_submodule(path)]}
        self._modules = [(module, partial(_redirect, handle, path, module.forward)) for path, module in found.values()]
        # accelerate's hooks put a forward of their own on a module.
        self._before = [module.__dict__.get("forward") for module, _ in self._modules]

    def __enter__(self) -> None:
        for module, redirect in self._modules:
            module.forward = redirect

    def __exit__(self, *error: object) -> None:
        for (module, _), before in zip(self._modules, self._before, strict=True):
            if before is None:
                del module.forward
            else:
                module.forward = before


def _redirect(handle: Callable[..., Any], path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return handle(path, forward, args, kwargs)


def trace_forward(
    model: nn.Module,
    paths: Iterable[str],
    inputs: Mapping[str, Tensor],
    around: Callable[[str], Any],
) -> Trace:
    """Run the model once and return what it did.

    Parameters
    ----------
    model
        The model; its parameters have values, real or fake, while a unit runs.
    paths
        Its units with state, each module once.
    inputs
        Keyword arguments of its forward.
    around
        Context manager around every call of a unit, given its path: it may put the unit's weights in place.

    Raises
    ------
    Unsupported
        Where the model returns what is no tensor.

    Examples
    --------
    >>> from contextlib import nullcontext
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    >>> trace = trace_forward(model, ["0", "1"], {"input": torch.zeros(4, 2)}, nullcontext)
    >>> [(call.unit, call.shapes, sorted(call.uses)) for call in trace.calls]
    [('0', [(4, 2)], []), ('1', [(4, 3)], [(0, 0)])]
    """
    observer = _Observer(model, around)
    with Interception(model, paths, observer.call), observer, torch.no_grad():
        output = model(**inputs)
        observer.finish(output)
    return observer.trace


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows tensors by their storage: views and in-place operations share it."""

    def __init__(self, model: nn.Module, around: Callable[[str], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._around = around
        self._inside: str | None = None
        self._origins: dict[int, frozenset[Leaf]] = {}
        self._leaves: dict[int, Leaf] = {}
        self._kept: list[Any] = []  # a freed storage's address would be taken by another one
        self._flops = 0
        self._names: dict[int, str] = {}
        self._model = model

    def call(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._inside is not None:
            self.trace.nested.setdefault(self._inside, set()).add(path)
            with self._around(path):
                return forward(*args, **kwargs)
        self._find_shared((args, kwargs))
        uses = self._origin_of((args, kwargs))
        self._inside = path
        try:
            with self._around(path):
                output = forward(*args, **kwargs)
            try:
                leaves, structure = flatten(output)
            except Unsupported as error:
                self.trace.obstacle = self.trace.obstacle or f"{path} returns {error}"
                leaves, structure = [], None
            # A unit may hand out what it was given, or several views of one tensor; origins must not mix.
            fresh = {id(leaf): leaf.detach().clone() for leaf in leaves}
        finally:
            self._inside = None
        number = len(self.trace.calls)
        for position, leaf in enumerate(leaves):
            self._mark(fresh[id(leaf)], frozenset({(number, position)}))
            self._leaves[_storage(fresh[id(leaf)])] = (number, position)
        self.trace.calls.append(
            Call(path, uses, structure, [tuple(leaf.shape) for leaf in leaves], [_name(leaf) for leaf in leaves])
        )
        self.trace.calls[-1].flops, self._flops = self._flops, 0
        return output if self.trace.obstacle else _replace(output, fresh)

    def finish(self, output: Any) -> None:
        leaves, self.trace.structure = flatten(output)
        self.trace.outputs = self._origin_of(leaves)
        self.trace.shapes = [tuple(leaf.shape) for leaf in leaves]
        self.trace.dtypes = [_name(leaf) for leaf in leaves]
        self.trace.trailing_flops = self._flops
        told = getattr(self._model, "left_out", None)
        self.trace.left_out = None if told is None else dict(told)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        self.trace.operations += 1
        if func._schema.is_mutable:
            self._find_written(func, args, kwargs)
        if self._inside is None:
            self._find_shared((args, kwargs))
            origin = self._origin_of((args, kwargs))
            if packet in _DECIDING:
                self.trace.deciding |= origin
        output = func(*args, **kwargs)
        self._count(packet, args, kwargs, output)
        if self._inside is None and packet not in _SHAPE_ONLY:
            for tensor in _tensors(output):
                self._mark(tensor, origin | self._origins.get(_storage(tensor), frozenset()))
        return output

    def _find_written(self, func: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        for one in func._schema.arguments:
            if one.alias_info is None or not one.alias_info.is_write:
                continue
            for tensor in _tensors(given.get(one.name)):
                leaf = self._leaves.get(_storage(tensor))
                if leaf is not None:
                    self.trace.written.add(leaf)
                    if self._inside is None:
                        self.trace.repeated.add(leaf)

    def _count(self, packet: Any, args: Any, kwargs: Any, output: Any) -> None:
        if packet in flop_registry:
            self._flops += int(flop_registry[packet](*args, **kwargs, out_val=output))
        elif packet is _aten._grouped_mm:
            self._flops += 2 * args[0].shape[0] * args[1].shape[-2] * args[1].shape[-1]
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            self._flops += int(_count_attention(*(tuple(tensor.shape) for tensor in args[:3])))

    def _find_shared(self, value: Any) -> None:
        if not self._names:
            self._names = {
                _storage(tensor): name
                for name, tensor in self._model.state_dict(keep_vars=True).items()
                if tensor.numel()
            }
        for tensor in _tensors(value):
            name = self._names.get(_storage(tensor))
            if name is not None:
                self.trace.shared.add(name)

    def _mark(self, tensor: Tensor, origin: frozenset[Leaf]) -> None:
        self._origins[_storage(tensor)] = origin
        self._kept.append(tensor)

    def _origin_of(self, value: Any) -> frozenset[Leaf]:
        found = (self._origins.get(_storage(tensor), frozenset()) for tensor in _tensors(value))
        return frozenset().union(*found)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)


def _replace(value: Any, fresh: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fresh[id(value)]
    if isinstance(value, Mapping):
        for key, item in list(value.items()):
            value[key] = _replace(item, fresh)  # type: ignore[index]
        return value
    if isinstance(value, tuple | list):
        return type(value)(_replace(item, fresh) for item in value)
    return value


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
