"""A shard that is larger than its device: accelerate brings each unit's weights when it runs, and lets them go after.

Whole units, for a module inside one may read weights of another that is never called itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, offload_weight, save_offload_index
from torch import nn

Fill = Callable[[list[str], str], int]
"""Loads tensors, by their paths, to a device; returns the bytes that were read."""


def fill_offloaded(
    module: nn.Module, units: Mapping[str, Mapping[str, str]], fill: Fill, device: str, folder: Path | None
) -> int:
    """Give units their weights in main memory or on disk; each one's are brought to the device when it runs.

    On their way to disk they pass through memory one module at a time.

    Parameters
    ----------
    module
        The stage's skeleton.
    units
        Units to offload -> path of each parameter -> its name in the snapshot; equal names are read and kept once.
    fill
        Loads tensors.
    device
        Where it computes.
    folder
        Where weights are kept on disk; None for main memory.

    Returns
    -------
    int
        Bytes read.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     module = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> def fill(paths, device):
    ...     for path in paths:
    ...         module[0].weight = nn.Parameter(torch.eye(2), requires_grad=False)
    ...     return 16
    >>> fill_offloaded(module, {"0": {"0.weight": "weight"}}, fill, "cpu", None)
    16
    >>> module(torch.tensor([1.0, 2.0])), module[0].weight.device.type
    (tensor([1., 2.]), 'meta')
    """
    names = {path: name for parameters in units.values() for path, name in parameters.items()}
    read = 0
    weights: Any
    if folder is None:
        read = fill(list(names), "cpu")
        weights = {path: module.get_parameter(path).data for path in names}
        _empty(module, list(names))
    else:
        # What is tied must not fill its twin as well: that would stay in memory.
        _empty(module, list(names))
        first = {name: path for path, name in reversed(names.items())}
        index: dict[str, Any] = {}
        for _, group in groupby(first.values(), key=lambda path: path.rpartition(".")[0]):
            paths = list(group)
            read += fill(paths, "cpu")
            for path in paths:
                offload_weight(module.get_parameter(path).data, path, folder, index=index)
            _empty(module, paths)
        for path, name in names.items():
            if path != first[name]:
                index[path] = index[first[name]]
                (folder / f"{path}.dat").hardlink_to(folder / f"{first[name]}.dat")
        save_offload_index(index, folder)
        weights = OffloadedWeightsLoader(save_folder=folder)
    for unit in units:
        hook = AlignDevicesHook(
            execution_device=torch.device(device),
            offload=True,
            weights_map=PrefixedDataset(weights, f"{unit}."),
            place_submodules=True,
        )
        add_hook_to_module(module.get_submodule(unit), hook)
    return read


def _empty(module: nn.Module, paths: list[str]) -> None:
    """Take parameters' memory away; each is one of its own from now on."""
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        old = module.get_parameter(path)
        blank = torch.empty_like(old, device="meta")
        module.get_submodule(owner)._parameters[leaf] = nn.Parameter(blank, requires_grad=False)
