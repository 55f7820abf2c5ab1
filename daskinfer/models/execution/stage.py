"""A stage with its weights: what a worker loads once and runs for every microbatch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from daskinfer.errors import CheckpointError, JobFailed
from daskinfer.models.execution.device_check import DeviceCheck, in_order
from daskinfer.models.execution.device_errors import explain_failures
from daskinfer.models.execution.devices import find_cpu, find_device
from daskinfer.models.execution.kernels import use_kernels
from daskinfer.models.execution.offload import fill_offloaded
from daskinfer.models.execution.runner import Forward, Results, Runner
from daskinfer.models.execution.weights import Filling, fill_module, find_entries
from daskinfer.models.module_state import ModuleState, reset_before
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.skeleton import Skeleton, owned_names, padded_length
from daskinfer.models.splitting.standins import make_blank, replace_state, state_names
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tensors import Array
from daskinfer.spec.outline import InputArray, Outline
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
    inputs
        What it takes of the model's inputs.
    check
        Compares rows of its first microbatch with the same rows alone; None where that proves nothing.
    device
        On what.
    read_bytes
        Bytes that were read to load it.
    scratch
        Folder of weights on disk, deleted with the stage.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: tuple[InputArray, ...],
        check: DeviceCheck | None,
        device: DeviceShape,
        read_bytes: int,
        scratch: TemporaryDirectory[str] | None,
    ) -> None:
        self.device = device.kind if device.kind == "cpu" else f"{device.kind}: {device.name}"
        self.read_bytes = read_bytes
        self._runner = runner
        self._inputs = inputs
        self._check = check
        if scratch is not None:
            weakref.finalize(self, scratch.cleanup)

    @property
    def device_peak(self) -> int:
        """Most bytes that this process has held on the device; 0 on a CPU."""
        return self._runner.usage.device_peak

    def run(self, inputs: Mapping[str, Array], received: tuple[Array, ...] = ()) -> tuple[Results, int]:
        """Run one microbatch.

        Parameters
        ----------
        inputs
            The model's inputs, (items, ...) each; others beside them are left alone.
        received
            What the stage before returned; empty on the first stage.

        Returns
        -------
        tuple or dict
            Arrays that cross to the next stage; on the last stage what the model returns, by name.
        int
            How often it did not fit the device and was run in smaller parts.

        Raises
        ------
        JobFailed
            Not even one row fits the device, or rows of its first microbatch differ when they are computed alone.
        """
        before = self._runner.usage.out_of_memory
        taken = {array.name: inputs[array.name] for array in self._inputs}
        results = self._run(taken, received)
        if self._check is not None and self._check.compare(
            lambda inputs, received: in_order(self._run(inputs, received)),
            taken,
            received,
            in_order(results),
            self.device,
        ):
            self._check = None
        return results, self._runner.usage.out_of_memory - before

    def _run(self, inputs: Mapping[str, Array], received: tuple[Array, ...]) -> Results:
        return self._runner.run(inputs, received, length=padded_length(inputs, self._inputs))


def load_stage(
    *,
    request: TaskRequest,
    outline: Outline,
    manifest: Manifest,
    stage: StagePlan,
    numerics: Numerics,
    read: Read,
    scratch: str | None = None,
    check_rows: bool = True,
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
    scratch
        Folder for weights on disk; by default the system's for temporary files.
    check_rows
        Whether rows of the first microbatch are computed once more, alone: not where what it receives is made up.

    Raises
    ------
    CheckpointError
        If a tensor is missing, or of another shape.
    JobFailed
        If the device that the plan counts on is not there.
    DeviceFailed
        If it is there and does not work.
    """
    device = _take_device(numerics.device)
    module = build_task(request, numerics.dtype)
    owned = owned_names(module, outline, stage.first, stage.last)
    _refuse_gaps(module, outline, stage, frozenset(owned))
    replace_state(module, set(state_names(module)) - set(owned), make_blank)
    entries = find_entries(manifest, {path: module.stored_name(path) for path in owned})
    _untie(module, {path: entry.name for path, (_, entry) in entries.items()})

    def fill(paths: list[str], place: str) -> int:
        wanted = {path: entries[path] for path in paths}
        pairs = list({pair[1].name: pair for pair in wanted.values()}.values())
        found = {path: entry for path, (_, entry) in wanted.items()}
        return fill_module(module, found, lambda targets: read(pairs, targets), device=place)

    folder = None
    units: dict[str, dict[str, str]] = {}
    if stage.offload == "disk":
        folder = TemporaryDirectory(prefix="daskinfer-offload-", dir=scratch, ignore_cleanup_errors=True)
    if stage.offload == "disk" or (stage.offload == "cpu" and device.kind != "cpu"):
        units = _movable_units(module, outline, stage, {path: entry.name for path, (_, entry) in entries.items()})
    away = {path for names in units.values() for path in names}
    with explain_failures(device):
        read_bytes = fill([path for path in owned if path not in away], device.kind)
        if units:
            read_bytes += fill_offloaded(module, units, fill, device.kind, Path(folder.name) if folder else None)
    _refuse_meta(module, away)
    _move_buffers(module, device.kind)
    forward: Forward = Skeleton(module, outline, stage.first, stage.last).run
    if outline.sharing is not None and outline.sharing.reset:
        forward = reset_before(forward, ModuleState(module))
    forward = use_kernels(forward, numerics.kernels)
    is_last = stage.last == len(outline.layers)
    received = tuple(item.tensor for item in outline.layers[stage.first].cut)
    returned = outline.outputs if is_last else tuple(item.tensor for item in outline.layers[stage.last].cut)
    runner = Runner(
        forward,
        received=received,
        returned=returned,
        dtype=numerics.dtype,
        snapshot=manifest.digest,
        device=device,
        threads=numerics.threads,
    )
    results = tuple(returned.values()) if isinstance(returned, Mapping) else returned
    check = DeviceCheck(outline.inputs, received, results) if check_rows else None
    return Stage(runner, outline.inputs, check, device, read_bytes, folder)


def _refuse_gaps(module: TaskModule, outline: Outline, stage: StagePlan, owned: Collection[str]) -> None:
    """Refuse an outline that lets a stage run modules without loading all of their tensors."""
    layers = outline.layers[stage.first : stage.last]
    running = {event.unit for event in outline.events[layers[0].begin : layers[-1].end]}
    if outline.uncut is not None:
        running.add("")
    for name in state_names(module):
        if name not in owned and any(not unit or name == unit or name.startswith(f"{unit}.") for unit in running):
            raise CheckpointError(
                f"tensor {name} is used by layers {stage.first} to {stage.last - 1}, which do not load it",
                hint="The layers that were found of this model are not its own: delete the cache's folder outlines/.",
            )


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
        hint="Start workers with the same devices as before, or start over: daskinfer run RECIPE --fresh.",
    )


def _movable_units(
    module: TaskModule, outline: Outline, stage: StagePlan, stored: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return the units whose parameters nothing else reads, so that they may be brought when the unit runs.

    Each with its parameters, by path, and their names in the snapshot, which `stored` tells of all tensors.
    """
    shared = {name for path, name in stored.items() if module.stored_name(path) in outline.shared}
    movable = {}
    for unit in dict.fromkeys(unit for layer in outline.layers[stage.first : stage.last] for unit in layer.units):
        parameters = module.get_submodule(unit).named_parameters(unit, remove_duplicate=False)
        names = {path: stored[path] for path, _ in parameters}
        if names and not shared & set(names.values()):
            movable[unit] = names
    return movable


def _move_buffers(module: TaskModule, device: str) -> None:
    """Bring what a checkpoint does not store, such as rotary frequencies, to the device."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta and buffer.device.type != device:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def _refuse_meta(module: TaskModule, away: Collection[str] = ()) -> None:
    for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers()):
        if tensor.is_meta and name not in away:
            raise CheckpointError(
                f"tensor {name} has no value after loading",
                hint="The snapshot does not belong to this configuration; publish the checkpoint again.",
            )
