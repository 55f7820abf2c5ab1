"""A stage with its weights: what a worker loads once and runs for every microbatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from daskinfer.errors import CheckpointError, JobFailed
from daskinfer.models.devices import find_cpu, find_device
from daskinfer.models.offload import fill_offloaded
from daskinfer.models.runner import Results, Runner
from daskinfer.models.skeleton import Skeleton, owned_names
from daskinfer.models.standins import make_blank, replace_state, state_names
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tensors import Array
from daskinfer.models.weights import Filling, fill_module, find_entries, float32_paths
from daskinfer.spec.outline import Outline
from daskinfer.spec.plan import DeviceShape, Numerics, StagePlan
from daskinfer.spec.snapshot import LayerGroup, Manifest, TensorEntry

Read = Callable[[list[tuple[LayerGroup, TensorEntry]], Mapping[str, Filling]], int]
"""Brings the bytes of tensors to where they go, verified, and returns how many it read."""


class Stage:
    """Loaded layers, ready to run; one call at a time.

    Parameters
    ----------
    runner
        What computes.
    device
        On what.
    parameter_bytes
        Bytes of its weights.
    read_bytes
        Bytes that were read to load it.
    scratch
        Folder of weights on disk, deleted with the stage.
    """

    def __init__(
        self,
        runner: Runner,
        device: DeviceShape,
        parameter_bytes: int,
        read_bytes: int,
        scratch: TemporaryDirectory[str] | None,
    ) -> None:
        self.device = device.kind if device.kind == "cpu" else f"{device.kind}: {device.name}"
        self.parameter_bytes = parameter_bytes
        self.read_bytes = read_bytes
        self._runner = runner
        self._scratch = scratch

    def run(self, inputs: Mapping[str, Array], received: tuple[Array, ...] = ()) -> tuple[Results, int]:
        """Run one microbatch.

        Parameters
        ----------
        inputs
            The model's inputs, (items, ...) each.
        received
            What the stage before returned; empty on the first stage.

        Returns
        -------
        tuple or dict
            Arrays that cross to the next stage; on the last stage what the model returns, by name.
        int
            How often it did not fit the device and was run in smaller parts.
        """
        before = self._runner.usage.out_of_memory
        length = inputs["input_ids"].shape[1] if "attention_mask" in inputs else 1
        results = self._runner.run(inputs, received, length=length)
        return results, self._runner.usage.out_of_memory - before


def load_stage(
    *,
    request: TaskRequest,
    outline: Outline,
    manifest: Manifest,
    stage: StagePlan,
    numerics: Numerics,
    read: Read,
) -> Stage:
    """Build a stage and fill it with exactly its tensors.

    Parameters
    ----------
    request
        What the model is asked to do.
    outline
        Its layers and cuts.
    manifest
        The snapshot.
    stage
        Which layers, and whether they may be kept elsewhere than on the device.
    numerics
        Precision, device and cores.
    read
        Brings the bytes.

    Raises
    ------
    CheckpointError
        If a tensor is missing, or of another shape.
    JobFailed
        If the device that the plan counts on is not there.
    """
    device = _take_device(numerics.device)
    module = build_task(request, numerics.dtype)
    owned = owned_names(module, outline, stage.first, stage.last)
    replace_state(module, set(state_names(module)) - set(owned), make_blank)
    entries = find_entries(manifest, {path: module.stored_name(path) for path in owned})
    _untie(module, {path: entry.name for path, (_, entry) in entries.items()})
    keep_float32 = float32_paths(module.model, getattr(torch, numerics.dtype))

    def fill(paths: list[str], place: str) -> int:
        wanted = {path: entries[path] for path in paths}
        pairs = list({pair[1].name: pair for pair in wanted.values()}.values())
        found = {path: entry for path, (_, entry) in wanted.items()}
        return fill_module(module, found, lambda targets: read(pairs, targets), device=place, keep_float32=keep_float32)

    scratch = None
    if stage.offload == "none":
        read_bytes = fill(owned, device.kind)
        _refuse_meta(module)
    else:
        folder = None
        if stage.offload == "disk":
            scratch = TemporaryDirectory(prefix="daskinfer-offload-", ignore_cleanup_errors=True)
            folder = Path(scratch.name)
        units = _movable_units(module, outline, stage)
        away = {name for names in units.values() for name in names}
        resident = [name for name in owned if name not in away]
        read_bytes = fill_offloaded(module, units, resident, fill, device.kind, folder)
    _move_buffers(module, device.kind)
    skeleton = Skeleton(module, outline, stage.first, stage.last)
    is_last = stage.last == len(outline.layers)
    runner = Runner(
        skeleton.run,
        received=tuple(item.tensor for item in outline.layers[stage.first].cut),
        returned=outline.outputs if is_last else tuple(item.tensor for item in outline.layers[stage.last].cut),
        dtype=numerics.dtype,
        snapshot=manifest.digest,
        device=device,
        threads=numerics.threads,
    )
    size = sum({entry.name: entry.end - entry.begin for _, entry in entries.values()}.values())
    return Stage(runner, device, size, read_bytes, scratch)


def _untie(module: TaskModule, stored: Mapping[str, str]) -> None:
    """Part parameters that the configuration ties, but of which the checkpoint holds copies that differ."""
    places = dict(module.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for path, name in stored.items():
        if path in places and first.setdefault(id(places[path]), name) != name:
            owner, _, leaf = path.rpartition(".")
            setattr(
                module.get_submodule(owner), leaf, nn.Parameter(torch.empty_like(places[path]), requires_grad=False)
            )


def _take_device(kind: str) -> DeviceShape:
    found = find_device()
    if found.kind == kind:
        return found
    if kind == "cpu":
        return find_cpu()
    raise JobFailed(
        f"the plan counts on {kind}, but this worker has only {found.kind}",
        hint="Start workers with the same devices as before, or start over with --fresh.",
    )


def _movable_units(module: TaskModule, outline: Outline, stage: StagePlan) -> dict[str, list[str]]:
    """Return the units whose parameters nothing else reads, so that they may be brought when the unit runs."""
    shared = frozenset(outline.shared)
    movable = {}
    for unit in dict.fromkeys(unit for layer in outline.layers[stage.first : stage.last] for unit in layer.units):
        names = [f"{unit}.{name}" for name, _ in module.get_submodule(unit).named_parameters()]
        if names and not any(module.stored_name(name) in shared for name in names):
            movable[unit] = names
    return movable


def _move_buffers(module: TaskModule, device: str) -> None:
    """Bring what a checkpoint does not store, such as rotary frequencies, to the device."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta and buffer.device.type != device:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def _refuse_meta(module: TaskModule) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(
                f"tensor {name} has no value after loading",
                hint="The snapshot does not belong to this configuration; publish the checkpoint again.",
            )
