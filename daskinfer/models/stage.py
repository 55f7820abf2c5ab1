"""A stage with its weights: what a worker loads once and runs for every microbatch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.families import group_of, normal_name
from daskinfer.models.heads import Outputs, make_head
from daskinfer.models.skeleton import StageModule
from daskinfer.models.tensors import Array, array_to_tensor, tensor_nbytes, tensor_to_array
from daskinfer.spec.recipe import ModelOptions

RawTensor = tuple[str, tuple[int, ...], memoryview]
"""safetensors dtype, shape, bytes."""
GroupReader = Callable[[], Mapping[str, RawTensor]]
"""Reads one layer group: tensor name -> its bytes."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MISMATCH = "The snapshot does not belong to this configuration; publish the checkpoint again."


class Stage:
    """Loaded layers, ready to run; one call at a time.

    Parameters
    ----------
    module
        The skeleton with all its weights in place.
    task, config, options
        What the last stage computes from the last layer.
    device
        Where the weights are.
    threads
        Cores that a call computes with.
    """

    def __init__(
        self,
        module: StageModule,
        task: str,
        config: Mapping[str, Any],
        options: ModelOptions,
        device: str,
        threads: int,
    ) -> None:
        self._module = module
        self._head = make_head(task, config, options) if module.is_last else None
        self._device = device
        self._threads = threads
        self._lock = threading.Lock()
        self.parameter_bytes = sum(tensor_nbytes(parameter) for parameter in module.parameters())

    def run(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], hidden: Array | None = None) -> Array | Outputs:
        """Run one microbatch.

        Parameters
        ----------
        ids
            Token ids, (rows, tokens), padded on the right.
        lengths
            Tokens of each row, (rows,).
        hidden
            What the stage before returned; None on the first stage.

        Returns
        -------
        numpy.ndarray or dict
            Hidden states (rows, tokens, width) in the stage's dtype; on the last stage the task's columns by name.
        """
        with self._lock, torch.inference_mode():
            # OpenMP keeps this number for each thread, and the pool's threads come and go.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            tokens = torch.from_numpy(ids.astype(np.int64)).to(self._device)
            columns = np.arange(ids.shape[1], dtype=lengths.dtype)
            mask = torch.from_numpy((columns < lengths[:, None]).astype(np.int64)).to(self._device)
            received = None if hidden is None else array_to_tensor(hidden).to(self._device)
            output = self._module(tokens, mask, received)
            return tensor_to_array(output) if self._head is None else self._head(output, mask)


def load_stage(
    *,
    config: Mapping[str, Any] | bytes,
    task: str,
    options: ModelOptions,
    groups: Mapping[str, GroupReader],
    first: int,
    last: int,
    dtype: str,
    device: str = "cpu",
    threads: int = 1,
) -> Stage:
    """Build the stage of layers [first, last) and fill it from its layer groups, one in memory at a time.

    Parameters
    ----------
    config
        config.json, parsed or as bytes.
    task, options
        What the model is asked to do.
    groups
        Readers of the snapshot's groups by name; only those the stage needs are called.
    first, last
        Layers of the stage.
    dtype
        Precision of weights and activations: float32, bfloat16 or float16.
    device, threads
        Where and with how many cores it runs.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unexpected, or of another shape.
    """
    settings: Mapping[str, Any] = json.loads(config) if isinstance(config, bytes) else config
    module = StageModule(settings, task, first, last)
    wanted = {normal_name(module.family, name): name for name, _ in module.model.named_parameters()}
    for group in dict.fromkeys(group_of(module.family, name) for name in wanted):
        if group not in groups:
            raise CheckpointError(f"the stage of layers {first} to {last} needs the group {group!r}", hint=_MISMATCH)
        names = {name for name in wanted if group_of(module.family, name) == group}
        tensors = groups[group]()
        for problem, difference in (("missing", names - tensors.keys()), ("unexpected", tensors.keys() - names)):
            if difference:
                raise CheckpointError(f"group {group!r}: {problem} tensor {min(difference)}", hint=_MISMATCH)
        for name in sorted(names):
            _place(module.model, wanted[name], tensors[name], getattr(torch, dtype), device)
    _fill_buffers(module.model, device)
    _refuse_meta(module)
    return Stage(module, task, settings, options, device, threads)


def _place(model: nn.Module, path: str, raw: RawTensor, dtype: torch.dtype, device: str) -> None:
    stored, shape, data = raw
    expected = tuple(model.get_parameter(path).shape)
    if tuple(shape) != expected:
        raise CheckpointError(f"tensor {path}: shape {tuple(shape)}, but the model has {expected}", hint=_MISMATCH)
    if stored not in _DTYPES:
        raise CheckpointError(f"tensor {path}: stored as {stored}, which is no floating-point weight", hint=_MISMATCH)
    tensor = torch.empty(shape, dtype=_DTYPES[stored])
    np.copyto(tensor.view(-1).view(torch.uint8).numpy(), np.frombuffer(data, dtype=np.uint8))
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device, dtype), requires_grad=False))


def _fill_buffers(model: nn.Module, device: str) -> None:
    """Make the embeddings' index buffers real; a checkpoint does not store them."""
    for path, buffer in list(model.named_buffers()):
        owner, _, leaf = path.rpartition(".")
        real: Tensor | None = None
        if leaf == "position_ids":
            real = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        elif leaf == "token_type_ids":
            real = torch.zeros(buffer.shape, dtype=torch.long, device=device)
        if real is not None:
            setattr(model.get_submodule(owner), leaf, real)


def _refuse_meta(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(f"tensor {name} has no value after loading", hint=_MISMATCH)
