"""Stand-ins for weights that are not there: NaN without memory, values that cost nothing, or random numbers.

torch on the CPU silently computes garbage from some meta tensors (a Linear without bias returns memory as it finds it),
so nothing that may run keeps one. NaN poisons whatever it touches, and is seen.
"""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

Make = Callable[[str, Tensor], Tensor]
_Remembering = type(lru_cache(lambda: None))


def replace_state(model: nn.Module, names: Iterable[str], make: Make) -> None:
    """Replace parameters and buffers by `make(name, tensor)`; what is tied stays tied.

    Parameters
    ----------
    names
        Names in the model's `state_dict`.
    make
        Called once for every tensor, with the first of its names.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> replace_state(model, ["weight"], make_blank)
    >>> model.weight.isnan().all().item(), model.bias.isnan().any().item()
    (True, False)
    """
    made: dict[int, Tensor] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        table: Any = module._parameters if leaf in module._parameters else module._buffers
        old = table[leaf]
        if id(old) not in made:
            new = make(name, old).to(old.dtype)
            made[id(old)] = nn.Parameter(new, requires_grad=False) if table is module._parameters else new
        table[leaf] = made[id(old)]


def state_names(model: nn.Module) -> list[str]:
    """Return the names of everything that a snapshot stores of a model.

    Examples
    --------
    >>> state_names(nn.Linear(2, 2))
    ['weight', 'bias']
    """
    return list(model.state_dict(keep_vars=True))


def make_blank(name: str, tensor: Tensor) -> Tensor:
    """Return NaN of a tensor's shape that takes no memory; zeros for integers.

    Examples
    --------
    >>> blank = make_blank("weight", torch.empty(1000, 1000, device="meta"))
    >>> blank.shape, blank.untyped_storage().nbytes()
    (torch.Size([1000, 1000]), 4)
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return fill_blank(tensor.shape, tensor.dtype)


def fill_blank(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return NaN, or zeros for integers, in a shape that shares the memory of one element.

    Examples
    --------
    >>> blank = fill_blank((1000, 1000), torch.float32)
    >>> blank.shape, blank.untyped_storage().nbytes(), bool(blank.isnan().all())
    (torch.Size([1000, 1000]), 4, True)
    """
    value = torch.nan if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full([1] * len(shape), value, dtype=dtype, device=device).expand(shape)


def make_random(name: str, tensor: Tensor) -> Tensor:
    """Return numbers that follow from the name alone, of a size that keeps activations near 1.

    Examples
    --------
    >>> one, other = (make_random("weight", torch.empty(4, 4, device="meta")) for _ in range(2))
    >>> torch.equal(one, other), torch.equal(one, make_random("other", one))
    (True, False)
    """
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    # A block of numbers over and over: random enough, and as fast as memory.
    count = min(tensor.numel(), 1_000_003)
    numbers = torch.randn(max(count, 1), generator=generator)
    if tensor.ndim < 2:
        # Scales and variances are near 1, everything else near 0.
        numbers = 0.1 * numbers + name.endswith(("weight", "var"))
    else:
        numbers *= max(1, tensor[0].numel()) ** -0.5
    repeats = -(-tensor.numel() // max(count, 1))
    return numbers.to(tensor.dtype).repeat(max(repeats, 1))[: tensor.numel()].reshape(tensor.shape)


def make_filling(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor's own values where its class computes them, such as decays and masks that are saved; else random ones.

    Examples
    --------
    >>> mask = torch.tensor([0.0, 1.0])
    >>> make_filling("mask", mask) is mask, make_filling("weight", torch.empty(2, device="meta")).shape
    (True, torch.Size([2]))
    """
    is_computed = (
        not tensor.is_meta and bool((tensor != tensor.reshape(-1)[:1]).any()) and bool(tensor.isfinite().all())
    )
    return tensor if is_computed else make_random(name, tensor)


@contextmanager
def random_weights(model: nn.Module, always: Iterable[str]) -> Iterator[Callable[[str], Any]]:
    """Yield a context manager that gives a unit random weights while it runs; only `always` keep theirs.

    So a model of any size can run in the memory of its largest unit.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    >>> with random_weights(model, always=()) as around, around("0"):
    ...     model[0].weight.isfinite().all().item()
    True
    >>> model[0].weight.is_meta
    True
    """
    names = state_names(model)
    before = dict(model.state_dict(keep_vars=True))
    kept = frozenset(always)

    def make(name: str, _: Tensor) -> Tensor:
        return make_filling(name, before[name])

    replace_state(model, names, make_blank)
    replace_state(model, kept, make)

    @contextmanager
    def around(path: str) -> Iterator[None]:
        mine = [name for name in names if name.startswith(f"{path}.") and name not in kept]
        blanks = {name: _tensor(model, name) for name in mine}
        replace_state(model, mine, make)
        try:
            yield
        finally:
            for name, blank in blanks.items():
                _put(model, name, blank)

    try:
        yield around
    finally:
        for name, tensor in before.items():
            _put(model, name, tensor)


@contextmanager
def whole_random_weights(model: nn.Module) -> Iterator[None]:
    """Give a whole model random weights at once; integers that have values, such as positions, keep them.

    Examples
    --------
    >>> model = nn.Linear(2, 2, device="meta")
    >>> with whole_random_weights(model):
    ...     model.weight.is_meta
    False
    """
    before = dict(model.state_dict(keep_vars=True))

    def make(name: str, tensor: Tensor) -> Tensor:
        return make_filling(name, tensor) if tensor.is_meta or tensor.is_floating_point() else tensor

    replace_state(model, before, make)
    try:
        yield
    finally:
        for name, tensor in before.items():
            _put(model, name, tensor)


@contextmanager
def fake_weights(model: nn.Module) -> Iterator[FakeTensorMode]:
    """Give everything in a model a shape and a device but no values, and yield the mode that computes with it.

    Examples
    --------
    >>> model = nn.Linear(2, 3, device="meta")
    >>> with fake_weights(model) as mode, mode:
    ...     model(mode.from_tensor(torch.zeros(5, 2))).shape
    torch.Size([5, 3])
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it prints what the caller handles
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    names = [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))]
    # Whatever a forward notes on its modules is fake too.
    tables = [table for module in model.modules() for table in (vars(module), module._parameters, module._buffers)]
    before = [dict(table) for table in tables]
    _forget_results(model)
    with mode:
        replace_state(model, names, lambda name, old: torch.empty(old.shape, dtype=old.dtype, device="cpu"))
    try:
        yield mode
    finally:
        logger.setLevel(level)
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
        _forget_results(model)


def _forget_results(model: nn.Module) -> None:
    """Empty what functions of a model's code remember of earlier calls: a fake tensor must not come out of them later."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if kind.__module__ != "builtins"}
    places = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    tables = [vars(kind) for kind in kinds] + [vars(sys.modules[name]) for name in places if name in sys.modules]
    for value in [value for table in tables for value in table.values()]:
        # A decorator of transformers' own keeps the cache out of sight.
        inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _has_content(cell)]
        for one in (value, *inside):
            if isinstance(one, _Remembering):
                one.cache_clear()


def _has_content(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # it has none yet
        return False


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    table: Any = module._parameters if leaf in module._parameters else module._buffers
    table[leaf] = tensor
