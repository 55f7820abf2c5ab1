"""Tensors of a checkpoint that the model has no place for: buffers of older versions, other heads, or a refusal.

transformers leaves them all out with a warning. Here only what cannot change a result is left out.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.checkpoints.conversion import Mapped, read_tensor
from daskinfer.models.checkpoints.grouping import MISMATCH, refuse_odd_layers
from daskinfer.models.checkpoints.tensorfiles import StoredTensor

# As peft and AdapterHub name what they train: LoRA and its kin, IA3, orthogonal and other factors, prompts and prefixes.
_ADAPTER = re.compile(
    r"(^|\.)(base_layer\.|modules_to_save\.|original_module\.|adapters\.|adaption_|prefix_tuning\.|prompt_embeddings$"
    r"|prompt_encoder\.[^.]+\.(embedding|transform|mlp_head|lstm_head)\.)"
    r"|(^|[._])(lora|ia3|hada|lokr|oft|boft|hra|vera|vblora|fourierft|randlora|poly|road|bone|miss|shira)_[a-zA-Z]"
)
# As bitsandbytes, GPTQ, AWQ, compressed-tensors and those of fp8 name what a quantised weight is made of.
_QUANTISATION = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|(weight\.)?(nested_)?(absmax|quant_map)|weight\.quant_state\..*"
    r"|(weight|input|output|k|v)_(scale|zero_point)(_inv|_2|_ub)?|weight_(packed|shape)|\w+_(blocks|scales))$"
)
# Of a mask's missing places: -1e4 and below are what softmax was given.
_MASKED = -1e4
# Rotary frequencies were often saved in half precision.
_ROUNDING = 1e-2
_WINDOWS = ("window_size", "sliding_window", "attention_window")


def refuse_changes(model: nn.Module, mapped: Mapped, stored: Mapping[str, StoredTensor], where: str) -> None:
    """Raise `CheckpointError` where a tensor that the model has no place for would change what it computes.

    Left out may be what an older version of the class saved and the class now computes (by its values: a causal mask,
    the value of a masked place, rotary frequencies, a version number), and the head of another class.

    Parameters
    ----------
    model
        The model, on the meta device, its buffers real.
    mapped
        What becomes of the checkpoint's tensors.
    stored
        The checkpoint's tensors.
    where
        The checkpoint, for messages.

    Examples
    --------
    >>> name = "layer.lora_A.weight"
    >>> stored = StoredTensor(None, "model.safetensors", name, "F32", (2, 2), 0, 16)
    >>> refuse_changes(nn.Linear(2, 2), Mapped({}, {}, {name: name}), {name: stored}, "here")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: here: layer.lora_A.weight belongs to an adapter that was not merged ...
    """
    computed = {key: name for key, name in mapped.ignored.items() if _differs(model, name, stored[key])}
    odd = computed | {
        key: name for key, name in mapped.unexpected.items() if not _is_old_buffer(model, name, stored[key])
    }
    _refuse_foreign(odd, where)
    refuse_odd_layers(model, odd.values(), where)
    for name in odd.values():
        if owner := _find_owner(model, name):
            raise CheckpointError(
                f"{where}: unexpected tensor {name}: {owner} of {type(model).__name__} has nothing of that name",
                hint=f"{MISMATCH} Or load and save it once with transformers, which leaves out what it does not use.",
            )


def _refuse_foreign(odd: Mapping[str, str], where: str) -> None:
    """Raise `CheckpointError` where a tensor that the model has no place for is an adapter's, or a quantisation's."""
    if adapter := next(filter(_ADAPTER.search, odd), None):
        raise CheckpointError(
            f"{where}: {adapter} belongs to an adapter that was not merged into the weights",
            hint="Load the model with peft, call merge_and_unload(), and save that. Prompts that were trained cannot be "
            "merged: build the model with them by a function of your own, model.entry.",
        )
    if scale := next(filter(_QUANTISATION.search, odd), None):
        raise CheckpointError(
            f"{where}: {scale} belongs to quantised weights, which are not supported",
            hint="Publish the checkpoint in float32, bfloat16 or float16 that they were made from.",
        )


def _find_owner(model: nn.Module, name: str) -> str | None:
    """Return the module that would compute something else with such a tensor; None where it is another head's."""
    owner, module = "", model
    *path, _ = name.split(".")
    for step in path:
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            break
        owner, module = f"{owner}.{step}" if owner else step, child
    base = stored_prefix(model)
    if not owner or f"{owner}." == base:
        return None
    is_whole = owner == ".".join(path) and next(module.parameters(recurse=False), None) is not None
    return owner if owner.startswith(base) or is_whole else None


def _is_old_buffer(model: nn.Module, name: str, stored: StoredTensor) -> bool:
    """Whether a stored tensor is what the model computes by itself now, told by its values."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "weight":
        return False
    if leaf == "version":
        return len(stored.shape) < 2 and max(stored.shape, default=1) == 1
    if not _exists(model, owner) and leaf != "inv_freq":
        return False
    if stored.shape in ((), (1,)):
        return "mask" in leaf and stored.dtype[0] in "BF" and bool(read_tensor(stored).float() <= _MASKED)
    if leaf == "inv_freq":
        return any(_are_close(read_tensor(stored), buffer) for buffer in _find_frequencies(model))
    if not _is_square(stored) or not _is_causal(model, owner):
        return False
    return _find_window(read_tensor(stored)) in {stored.shape[-1], *_configured_windows(model)}


def _differs(model: nn.Module, name: str, stored: StoredTensor) -> bool:
    """Whether the model computes a buffer, such as a mask, that is stored with other values.

    Floating-point ones are often stored rounded.
    """
    buffers = (buffer for path, buffer in model.named_buffers() if f".{path}".endswith(f".{name}"))
    return any(
        tuple(buffer.shape) == stored.shape
        and not buffer.is_floating_point()
        and not torch.equal(read_tensor(stored).to(buffer.dtype), buffer)
        for buffer in buffers
    )


def _exists(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _is_square(stored: StoredTensor) -> bool:
    *leading, rows, columns = stored.shape if len(stored.shape) > 1 else (0, 0, 1)
    return rows == columns and all(size == 1 for size in leading)


def _is_causal(model: nn.Module, owner: str) -> bool:
    """Whether the model lets a token see only those before it, by what its own code says."""
    said = getattr(model.get_submodule(owner), "is_causal", None)
    if isinstance(said, bool):
        return said
    code = inspect.getsource(sys.modules[type(model).__module__])
    if "create_causal_mask(" not in code:
        return False
    return "create_bidirectional_mask(" not in code or bool(getattr(model.config, "is_decoder", False))


def _find_window(mask: Tensor) -> int | None:
    """Return how many tokens, itself included, a token sees in a causal mask of zeros and ones; None if it is none."""
    mask = mask.reshape(mask.shape[-2:])
    is_seen = mask != 0
    if not bool((mask.eq(0) | mask.eq(1)).all()):
        return None
    distance = torch.arange(len(mask))[:, None] - torch.arange(len(mask))
    width = int(is_seen[-1].sum())
    return width if torch.equal(is_seen, (distance >= 0) & (distance < width)) else None


def _configured_windows(model: nn.Module) -> Iterator[int]:
    settings: Any = getattr(model, "config", None)
    for name in _WINDOWS:
        value = getattr(settings, name, None)
        if isinstance(value, int):
            yield value


def _find_frequencies(model: nn.Module) -> Iterator[Tensor]:
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            yield buffer


def _are_close(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first.float(), second.float(), rtol=_ROUNDING, atol=0.0)
