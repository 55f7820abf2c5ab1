"""What a module of a user's own holds beside its saved state: the same at every build, with and without weights.

A stage builds the module without weights, in another process, and brings its `state_dict` alone. Whatever else the
module holds must come out there as it did where the module was published.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.ids import sha256_of

_OWN = frozenset(vars(nn.Module()))
_DEEPEST = 20
_PLAIN = (
    Tensor,
    np.ndarray,
    np.generic,
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    type(None),
)

Values = dict[str, Any]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give the global random generators a seed inside, and back their state afterwards.

    Examples
    --------
    >>> with seeded(1):
    ...     first = torch.rand(1)
    >>> with seeded(1):
    ...     torch.equal(torch.rand(1), first)
    True
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def collect_unsaved(model: nn.Module) -> Values:
    """Return everything that a module holds and its `state_dict` does not, by path.

    Tensors, arrays, numbers, texts and random generators: in attributes, in buffers that are not persistent, in
    lists, dictionaries, closures and objects that attributes hold, and in modules that only a plain list knows.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> model.scale, model.names = 0.5, ["a"]
    >>> collect_unsaved(model)
    {'in_features': 2, 'out_features': 2, 'scale': 0.5, 'names[0]': 'a'}
    """
    collector = _Collector(model)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name in module._non_persistent_buffers_set:
            collector.add(prefix + name, module._buffers.get(name))
        for name, value in vars(module).items():
            if name not in _OWN:
                collector.add(prefix + name, value)
    return collector.values


def find_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return the path of the first value in which two builds differ; None where they are the same.

    Examples
    --------
    >>> find_difference({"scale": 0.5, "seed": 1}, {"scale": 0.5, "seed": 2})
    'seed'
    >>> find_difference({"scale": float("nan")}, {"scale": float("nan")}) is None
    True
    """
    for path in dict.fromkeys([*first, *second]):
        if path not in first or path not in second or not _are_same(first[path], second[path]):
            return path
    return None


def digest_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every value, by path: equal ones have equal digests in every process.

    Examples
    --------
    >>> digest_values({"scale": 0.5}) == digest_values({"scale": 0.5}), list(digest_values({"scale": 0.5}))
    (True, ['scale'])
    """
    return {path: sha256_of(repr(_describe(value)).encode(errors="surrogatepass")) for path, value in values.items()}


def refuse_unsaved(function: str, builds: Mapping[str, Values]) -> None:
    """Raise `CheckpointError` where a build differs from the first one.

    Parameters
    ----------
    function
        The entry point, for messages.
    builds
        How each was made -> its values.

    Examples
    --------
    >>> refuse_unsaved("mymodel:build", {"": {"seed": 1}, "from build to build": {"seed": 2}})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: model.entry mymodel:build: seed is no saved state of the module, and differs from ...
    """
    (_, first), *others = builds.items()
    for how, values in others:
        path = find_difference(first, values)
        if path is not None:
            raise CheckpointError(
                f"model.entry {function}: {path} is no saved state of the module, and differs {how}",
                hint=f"Keep {path.partition('[')[0]} with register_buffer(name, value), persistent, so that it is "
                "published with the weights; or make it from constants alone.",
            )


class _Collector:
    def __init__(self, model: nn.Module) -> None:
        self.values: Values = {}
        self._seen: dict[int, object] = {id(module): module for module in model.modules()}

    def add(self, path: str, value: Any, depth: int = 0) -> None:
        if isinstance(value, _PLAIN):
            self.values[path] = value
        elif id(value) not in self._seen and depth < _DEEPEST:
            self._seen[id(value)] = value  # kept alive, so that no other object takes its number
            for inner, part in _parts(value):
                self.add(path + inner, part, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what an object holds, and how it is reached."""
    if isinstance(value, nn.Module):
        yield from ((f".{name}", part) for name, part in (*value.named_parameters(), *value.named_buffers()))
        for path, module in value.named_modules():
            dotted = f".{path}" if path else ""
            yield from ((f"{dotted}.{name}", part) for name, part in vars(module).items() if name not in _OWN)
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"[{number}]", part) for number, part in enumerate(sorted(value, key=repr)))
    elif isinstance(value, types.FunctionType):
        held = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f".{name}", _content(cell)) for name, cell in held)
        yield from ((f".defaults[{number}]", part) for number, part in enumerate(value.__defaults__ or ()))
    elif isinstance(value, types.MethodType):
        yield "", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, torch.Generator):
        yield ".state", value.get_state()
    elif isinstance(value, random.Random):
        yield ".state", value.getstate()
    elif isinstance(value, np.random.Generator):
        yield ".state", value.bit_generator.state
    elif not isinstance(value, type | types.ModuleType):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        yield from ((f".{name}", getattr(value, name)) for name in names if hasattr(value, name))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never given a value
        return None


def _are_same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        kinds = [(each.device, each.dtype, each.shape, each.layout) for each in (first, second)]
        return kinds[0] == kinds[1] and not first.is_meta and _same_values(first, second)
    if isinstance(first, np.ndarray | np.generic) or isinstance(second, np.ndarray | np.generic):
        one, other = np.asarray(first), np.asarray(second)
        return one.dtype == other.dtype and one.shape == other.shape and repr(one.tolist()) == repr(other.tolist())
    # Two NaN are the same here.
    return type(first) is type(second) and repr(first) == repr(second)


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
        numbers = "" if value.is_meta else _digest_numbers(dense.cpu())
        return str(value.device), str(value.dtype), tuple(value.shape), str(value.layout), numbers
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tolist()
    return type(value).__name__, value


def _digest_numbers(tensor: Tensor) -> str:
    return sha256_of(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _same_values(first: Tensor, second: Tensor) -> bool:
    if first.layout != torch.strided:
        first, second = first.to_dense(), second.to_dense()
    numbers = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (first, second)]
    return torch.equal(*numbers)
