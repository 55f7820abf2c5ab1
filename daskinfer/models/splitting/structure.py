"""Nested outputs as tensors plus a JSON description of how they nest, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from daskinfer.models.remotecode import PACKAGE


class Unsupported(Exception):
    """A value that cannot be taken apart and put together again elsewhere."""


def flatten(value: Any) -> tuple[list[Tensor], Any]:
    """Return the tensors of a nested value, and its structure.

    In the structure a tensor is its number, None is null, and everything else is a list that begins with its kind.

    Raises
    ------
    Unsupported
        For objects that are neither tensors, numbers, strings, sequences, mappings nor transformers' outputs.

    Examples
    --------
    >>> import torch
    >>> leaves, structure = flatten({"scores": torch.zeros(2), "more": (torch.ones(1), None, 7)})
    >>> len(leaves), structure
    (2, ['dict', {'scores': 0, 'more': ['tuple', 1, None, ['number', 7]]}])
    """
    leaves: list[Tensor] = []

    def visit(item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, Tensor):
            leaves.append(item)
            return len(leaves) - 1
        if isinstance(item, bool | float | str):
            return ["value", item]
        if isinstance(item, int):
            return ["number", item]
        if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
            kind = "tuple" if isinstance(item, tuple) else "list"
            return [kind, *(visit(part) for part in item)]
        if _is_output(type(item)):
            parts = {field.name: visit(getattr(item, field.name)) for field in fields(item)}
            return ["output", f"{type(item).__module__}:{type(item).__qualname__}", parts]
        if isinstance(item, Mapping):
            return ["dict", {str(key): visit(part) for key, part in item.items()}]
        raise Unsupported(f"a {type(item).__name__}")

    structure = visit(value)
    return leaves, structure


def unflatten(structure: Any, leaves: Sequence[Tensor], number: Callable[[Any], int] = int) -> Any:
    """Return the value that `flatten` took apart, made of other tensors.

    Parameters
    ----------
    structure
        As `flatten` returned it, or read back from JSON.
    leaves
        A tensor for every number in it.
    number
        Turns what stands for an integer into the integer.

    Examples
    --------
    >>> import torch
    >>> leaves, structure = flatten((torch.zeros(2), ["a", 7]))
    >>> unflatten(structure, leaves)
    (tensor([0., 0.]), ['a', 7])
    """

    def make(item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, int):
            return leaves[item]
        kind, *parts = item
        if kind == "value":
            return parts[0]
        if kind == "number":
            return number(parts[0])
        if kind == "tuple":
            return tuple(make(part) for part in parts)
        if kind == "list":
            return [make(part) for part in parts]
        if kind == "dict":
            return {key: make(part) for key, part in parts[0].items()}
        module, _, name = parts[0].partition(":")
        output: Any = None
        if module.startswith(("transformers.", PACKAGE)):
            output = getattr(importlib.import_module(module), name, None)
        if not _is_output(output):
            raise Unsupported(f"an output of the unknown class {parts[0]}")
        return output(**{key: made for key, part in parts[1].items() if (made := make(part)) is not None})

    return make(structure)


def _is_output(kind: Any) -> bool:
    return (
        isinstance(kind, type) and is_dataclass(kind) and any(base.__name__ == "ModelOutput" for base in kind.__mro__)
    )
