"""A shard that is larger than its device: accelerate brings each module's weights when it runs, and lets them go after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook
from accelerate.utils import OffloadedWeightsLoader, offload_weight, save_offload_index
from torch import nn

from daskinfer.models.standins import replace_state

Fill = Callable[[list[str], str], int]
"""Loads tensors, by their paths, to a device; returns the bytes that were read."""


def fill_offloaded(
    module: nn.Module, units: Mapping[str, list[str]], resident: list[str], fill: Fill, device: str, folder: Path | None
) -> int:
    """Give a stage its weights in main memory or on disk; each module's are brought to the device when it runs.

    On their way to disk they pass through memory one module at a time.

    Parameters
    ----------
    module
        The stage's skeleton.
    units
        Its units that may be kept away -> their parameters.
    resident
        All its other tensors.
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
    """
    read = fill(resident, device)
    away = [name for names in units.values() for name in names]
    weights: Any
    if folder is None:
        read += fill(away, "cpu")
        state = module.state_dict()
        weights = {name: state[name] for name in away}
    else:
        index: dict[str, Any] = {}
        for _, group in groupby(away, key=lambda name: name.rpartition(".")[0]):
            names = list(group)
            read += fill(names, "cpu")
            state = module.state_dict()
            for name in names:
                offload_weight(state[name], name, folder, index=index)
            del state
            replace_state(module, names, lambda name, tensor: torch.empty_like(tensor, device="meta"))
        save_offload_index(index, folder)
        weights = OffloadedWeightsLoader(save_folder=folder)
    for path in units:
        attach_align_device_hook(
            module.get_submodule(path),
            execution_device=torch.device(device),
            offload=True,
            weights_map=weights,
            module_name=path,
        )
    return read
