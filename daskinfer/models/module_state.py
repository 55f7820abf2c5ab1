"""What a module holds besides its parameters: remembered, and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")

# Tables and hooks of torch, and what accelerate puts in a module that it brings weights to.
_KEPT = frozenset(vars(nn.Module())) | {"_hf_hook", "_old_forward", "forward"}


# Parts may be exchanged for others that hold the same weights, and hooks put on by a first forward that notes it.
_TABLES = ("_modules", *(name for name, value in vars(nn.Module()).items() if "_hooks" in name and value is not None))


class ModuleState:
    """Parts, hooks, buffers and plain attributes of every part of a model, as they were when this was made.

    What cannot be copied stays as it is.

    Examples
    --------
    >>> model = nn.BatchNorm1d(2)
    >>> state = ModuleState(model)
    >>> _ = model.running_mean.fill_(7.0)
    >>> state.restore()
    >>> model.running_mean
    tensor([0., 0.])
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._parameters = list(model.parameters())
        memo = self._make_memo()
        self._tables = [{name: dict(vars(module)[name]) for name in _TABLES} for module in self._modules]
        self._saved = [(_copy_plain(module, memo), _copy_buffers(module, memo)) for module in self._modules]

    def restore(self) -> None:
        """Put everything back."""
        memo = self._make_memo()
        for module, tables, (plain, buffers) in zip(self._modules, self._tables, self._saved, strict=True):
            attributes = vars(module)
            for name in attributes.keys() - plain.keys() - _KEPT:
                del attributes[name]
            attributes.update({name: _copy(value, memo) for name, value in plain.items()})
            for name, table in tables.items():
                attributes[name].clear()
                attributes[name].update(table)
            module._buffers.clear()
            module._buffers.update({name: _copy(value, memo) for name, value in buffers.items()})

    def _make_memo(self) -> dict[int, Any]:
        # Parts of the model and its weights are never copied.
        return {id(part): part for part in (*self._modules, *self._parameters)}


def reset_before(forward: Callable[P, T], state: ModuleState) -> Callable[P, T]:
    """Return a forward that begins in the state that its model was in when `state` was made.

    Examples
    --------
    >>> class Counter(nn.Module):
    ...     calls = 0
    ...     def forward(self):
    ...         self.calls += 1
    ...         return self.calls
    >>> model = Counter()
    >>> forward = reset_before(model.forward, ModuleState(model))
    >>> forward(), forward()
    (1, 1)
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        state.restore()
        return forward(*args, **kwargs)

    return run


def _copy_plain(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    return {name: _copy(value, memo) for name, value in vars(module).items() if name not in _KEPT}


def _copy_buffers(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    return {name: _copy(value, memo) for name, value in module._buffers.items()}


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    with torch.no_grad():
        try:
            return copy.deepcopy(value, memo)
        except (TypeError, ValueError, RuntimeError, AttributeError, copy.Error):
            return value
