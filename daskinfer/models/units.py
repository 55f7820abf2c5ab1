"""A model as a row of units: the modules that a cut may pass between, found by their structure alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

# A list of small modules beside the real layers, such as a stem, is not worth cutting.
_SMALL_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Unit:
    """A module that runs whole: a layer, or something before, between or after the layers."""

    path: str
    """Where it is in the model; also the name of its layer group."""
    is_block: bool
    """Whether it is a layer."""


def find_units(model: nn.Module) -> tuple[Unit, ...]:
    """Return the outermost modules that hold no layers, and the layers, in the order of the module tree.

    Layers are the children with parameters of every outermost ModuleList or Sequential that has at least two of one
    class. Parameters that belong to no unit sit directly in a module that holds layers.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    >>> [(unit.path, unit.is_block) for unit in find_units(model)]
    [('0', True), ('1', True), ('2', True), ('3', False)]
    """
    lists = _find_lists(model)
    blocks = {
        path: module
        for base, container in lists.items()
        for name, module in container.named_children()
        if _has_parameters(module)
        for path in [f"{base}.{name}" if base else name]
    }
    units: list[Unit] = []

    def visit(path: str, module: nn.Module) -> None:
        if path in blocks:
            units.append(Unit(path, True))
        elif not path or any(block.startswith(f"{path}.") for block in blocks):
            for name, child in module.named_children():
                visit(f"{path}.{name}" if path else name, child)
        else:
            units.append(Unit(path, False))

    visit("", model)
    return tuple(units)


def unit_of(name: str, units: tuple[Unit, ...]) -> str:
    """Return the unit that a tensor belongs to; the module that holds it, where it is in none (`""` for the model).

    Examples
    --------
    >>> units = (Unit("embeddings", False), Unit("layers.0", True), Unit("layers.1", True))
    >>> unit_of("layers.1.weight", units), unit_of("norm.weight", units), unit_of("scale", units)
    ('layers.1', 'norm', '')
    """
    owners = [unit.path for unit in units if name.startswith(f"{unit.path}.")]
    return max(owners, key=len) if owners else name.rpartition(".")[0]


def _find_lists(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(not base or path.startswith(f"{base}.") for base in found)
        if inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds = [type(child) for child in module.children() if _has_parameters(child)]
        if any(kinds.count(kind) > 1 for kind in kinds):
            found[path] = module
    sizes = {path: _size(module) for path, module in found.items()}
    total = sum(sizes.values())
    return {path: module for path, module in found.items() if sizes[path] >= _SMALL_SHARE * total}


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
