"""A model's tensors cut into layer groups: every one checked, named as in a snapshot, and in exactly one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3
from torch import nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.checkpoints.tensorfiles import GroupFile, Tensor
from daskinfer.models.tensors import FLOATS
from daskinfer.models.units import Unit, find_units, unit_of

MISMATCH = "Take config.json and weights from the same checkpoint."


@dataclass(frozen=True, slots=True)
class Grouped:
    """All of a model's tensors."""

    groups: tuple[GroupFile, ...]
    """In model order."""
    tied: dict[str, str]
    """Name of a tensor that is stored under another name -> that name."""
    untied: tuple[str, ...]
    """Tensors that the model ties to others, but whose values differ."""
    missing: tuple[str, ...]
    """Tensors of parts that are not there at all, such as a pooler or a decoder's layers."""


def group_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> Grouped:
    """Cut a model's tensors into layer groups.

    Parameters
    ----------
    model
        The model, its weights tied; they may be on the meta device.
    tensors
        By name in the model's `state_dict`. Of tied ones, one is enough.
    where
        The checkpoint, for messages.

    Raises
    ------
    CheckpointError
        Where a tensor has another shape than the model's, or one is missing of a part of which others are there.

    Examples
    --------
    >>> import torch
    >>> from daskinfer.models.checkpoints.conversion import as_tensor
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> tensors = {name: as_tensor(value, name) for name, value in model.state_dict().items()}
    >>> [group.name for group in group_tensors(model, tensors, "here").groups]
    ['0', '1']
    """
    prefix = stored_prefix(model)
    units = find_units(model)
    grouped: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    tied: dict[str, str] = {}
    untied = []
    missing: list[str] = []
    gaps = []
    there = {_part_of(name, units) for name in tensors}
    for names, shape, is_float in _find_ties(model):
        present = [name for name in names if name in tensors]
        if not present:
            missing += [name.removeprefix(prefix) for name in names]
            if any(_part_of(name, units) in there for name in names):
                gaps.append(names[0].removeprefix(prefix))
            continue
        main = tensors[present[0]]
        for name in names:
            tensor = tensors.get(name, main)
            _check_kind(name.removeprefix(prefix), tensor, shape, is_float)
            differs = tensor is not main and not _are_equal(tensor, main)
            if name != names[0] and not differs:
                tied[name.removeprefix(prefix)] = names[0].removeprefix(prefix)
                continue
            if differs:
                untied.append(name.removeprefix(prefix))
            grouped[_group_of(name, units, prefix)].append((name.removeprefix(prefix), tensor))
    refuse_missing(gaps, where, type(model).__name__)
    named = [name for group in grouped.values() for name, _ in group]
    if len(set(named)) < len(named):
        raise CheckpointError(f"{where}: {type(model).__name__} has tensors whose names differ only in {prefix!r}")
    groups = tuple(GroupFile(name, tuple(group)) for name, group in grouped.items())
    return Grouped(groups, tied, tuple(untied), tuple(missing))


def refuse_odd_layers(model: nn.Module, unexpected: Iterable[str], where: str) -> None:
    """Raise `CheckpointError` where one of these names is inside a layer, or in a layer that the model lacks.

    What is outside the layers is some other class's head; inside, the layer would compute something else.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> refuse_odd_layers(nn.ModuleDict({"layers": model}), ["head.weight"], "here")
    >>> refuse_odd_layers(nn.ModuleDict({"layers": model}), ["layers.2.weight"], "here")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: here: by config.json there are 2 layers in layers, but the weights have layers.2
    Take config.json and weights from the same checkpoint.
    """
    prefix = stored_prefix(model)
    layers = {unit.path.removeprefix(prefix) for unit in find_units(model) if unit.is_block}
    for name in unexpected:
        short = name.removeprefix(prefix)
        for base in {layer.rpartition(".")[0] for layer in layers}:
            if not short.startswith(f"{base}."):
                continue
            layer = f"{base}.{short.removeprefix(f'{base}.').partition('.')[0]}"
            if layer in layers:
                raise CheckpointError(f"{where}: unexpected tensor {short} in layer {layer}", hint=MISMATCH)
            count = sum(each.rpartition(".")[0] == base for each in layers)
            raise CheckpointError(
                f"{where}: by config.json there are {count} layers in {base}, but the weights have {layer}",
                hint=MISMATCH,
            )


def refuse_missing(missing: Sequence[str], where: str, kind: str) -> None:
    """Raise `CheckpointError` where any tensor is missing.

    Examples
    --------
    >>> refuse_missing(["pooler.weight", "pooler.bias"], "here", "BertModel")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: here: missing tensor pooler.weight and 1 more
    The weights are not those of a BertModel of this configuration.
    """
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{where}: missing tensor {missing[0]}{more}",
            hint=f"The weights are not those of a {kind} of this configuration.",
        )


def _find_ties(model: nn.Module) -> list[tuple[list[str], tuple[int, ...], bool]]:
    """Return the names of each tensor of the model, in model order, its shape, and whether it is floating-point."""
    names: dict[int, list[str]] = defaultdict(list)
    state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names[id(tensor)].append(name)
    firsts = ((group, state[group[0]]) for group in names.values())
    return [(group, tuple(first.shape), first.is_floating_point()) for group, first in firsts]


def _group_of(name: str, units: tuple[Unit, ...], prefix: str) -> str:
    owner = unit_of(name, units)
    if any(unit.path == owner for unit in units):
        return owner.removeprefix(prefix)
    return name.removeprefix(prefix).rpartition(".")[0] or "model"


def _part_of(name: str, units: tuple[Unit, ...]) -> str:
    """Return what is there whole or not at all: a list of layers, or a unit beside them."""
    owner = unit_of(name, units)
    return owner.rpartition(".")[0] + ".*" if Unit(owner, True) in units else owner


def _check_kind(name: str, tensor: Tensor, shape: tuple[int, ...], is_float: bool) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.origin}: its shape is {list(tensor.shape)}, by the configuration {name} has {list(shape)}",
            hint=MISMATCH,
        )
    if (tensor.dtype in FLOATS) != is_float:
        raise CheckpointError(
            f"{tensor.origin}: it is stored as {tensor.dtype}, by the configuration {name} holds "
            f"{'floating-point' if is_float else 'whole'} numbers",
            hint=MISMATCH,
        )


def _are_equal(first: Tensor, second: Tensor) -> bool:
    # By digest: neither of two large tables needs to be in memory.
    digests = []
    for tensor in (first, second):
        digest = blake3()
        for piece in tensor.pieces():
            digest.update(piece)
        digests.append((tensor.dtype, digest.digest()))
    return digests[0] == digests[1]
