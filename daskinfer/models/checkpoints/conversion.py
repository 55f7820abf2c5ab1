"""From a checkpoint file's tensors to a module's: transformers' own key mapping, one tensor at a time.

transformers calls these functions semi-private (PEFT uses them too); no other module of daskinfer does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoints.tensorfiles import StoredTensor, Tensor, as_stored
from daskinfer.models.tensors import FLOATS, STORED_DTYPES

_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True)
class Mapped:
    """What a checkpoint's tensors become in a model."""

    tensors: dict[str, Tensor]
    """By name in the model's `state_dict`."""
    ignored: dict[str, str]
    """Tensors of the checkpoint that the model's class says it does not want, or computes itself -> the names they
    would have."""
    unexpected: dict[str, str]
    """All others that the model has no place for -> the names they would have."""


def map_tensors(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> Mapped:
    """Return where each tensor of a transformers model comes from, as `from_pretrained` would load it.

    Nothing is read: merging and transposing are tried on tensors without data.

    Raises
    ------
    CheckpointError
        Where two tensors of the checkpoint are the same tensor of the model, or cannot be merged.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.models.architecture import build_model
    >>> from daskinfer.models.checkpoints.plainfiles import read_config
    >>> from daskinfer.models.checkpoints.tensorfiles import read_weights
    >>> from daskinfer.models.folder import LocalFolder
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = LocalFolder(make_tiny_bert(Path("tiny"), layers=1))
    >>> mapped = map_tensors(build_model(read_config(folder, folder.names()), "BertModel"), read_weights(folder))
    >>> mapped.tensors["pooler.dense.bias"].shape, mapped.unexpected
    ((32,), {})
    """
    wanted: dict[str, torch.Tensor] = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    tensors: dict[str, Tensor] = {}
    merged: dict[str, list[tuple[str, StoredTensor]]] = defaultdict(list)
    strange: dict[str, str] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            strange[key] = name
        elif pattern is not None:
            merged[name].append((pattern, stored[key]))
        else:
            _add(tensors, name, as_stored(stored[key]))
    for name, parts in merged.items():
        conversion = _Conversion(name, by_pattern[parts[0][0]], tuple(parts), model)
        for target, example in conversion.run(_without_data).items():
            if target in wanted:
                _add(tensors, target, conversion.tensor(target, example))
            else:
                strange[parts[0][1].name] = target
    found: Any = SimpleNamespace(missing_keys=wanted.keys() - tensors, unexpected_keys=set(strange.values()))
    model._adjust_missing_and_unexpected_keys(found)
    for name in wanted.keys() - tensors:
        # A batch norm counts its batches in training alone.
        if name not in found.missing_keys or name.endswith("num_batches_tracked"):
            value = wanted[name] if not wanted[name].is_meta else _initial_value(model, name)
            if value is not None:
                tensors[name] = as_tensor(value, f"{type(model).__name__}: {name}")
    computed = {f".{name}" for name, _ in model.named_buffers()}
    unexpected = {
        key: name
        for key, name in strange.items()
        if name in found.unexpected_keys and not any(buffer.endswith(f".{name}") for buffer in computed)
    }
    ignored = {key: name for key, name in strange.items() if key not in unexpected}
    return Mapped(tensors, ignored, unexpected)


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """Return a floating-point tensor in another precision (F32, BF16, F16); others as they are.

    Examples
    --------
    >>> tensor = as_tensor(torch.tensor([1.0, 2.0]), "weight")
    >>> cast(tensor, "BF16").dtype, cast(tensor, "BF16").nbytes
    ('BF16', 4)
    """
    if tensor.dtype not in FLOATS or tensor.dtype == dtype:
        return tensor
    return Tensor(dtype, tensor.shape, partial(_cast_pieces, tensor, dtype), tensor.origin)


def precision_of(model: PreTrainedModel | None, dtype: str) -> Callable[[str], str]:
    """Return what precision each tensor, by its name in the model, has in a model of `dtype` (F32, BF16, F16).

    Examples
    --------
    >>> precision_of(None, "BF16")("encoder.layer.0.weight")
    'BF16'
    """
    plan = {} if model is None else model._get_dtype_plan(FLOATS[dtype])
    if not plan:
        return lambda name: dtype
    kept, by_group, _ = build_glob_alternation(list(plan))

    def choose(name: str) -> str:
        match = kept.search(name)
        return dtype if match is None else _NAMES[plan[by_group[match.lastgroup or ""]]]

    return choose


def as_tensor(value: torch.Tensor, origin: str) -> Tensor:
    """Return a tensor that is in memory.

    Raises
    ------
    CheckpointError
        Where its type is not one that a safetensors file can hold.

    Examples
    --------
    >>> tensor = as_tensor(torch.zeros(2, 3), "weight")
    >>> tensor.dtype, tensor.shape, tensor.nbytes
    ('F32', (2, 3), 24)
    """
    if value.dtype not in _NAMES:
        raise CheckpointError(f"{origin}: tensors of {value.dtype} cannot be published", hint="Convert it first.")
    return Tensor(_NAMES[value.dtype], tuple(value.shape), lambda: [_bytes_of(value)], origin)


@dataclass(frozen=True)
class _Conversion:
    name: str
    converter: Any
    parts: tuple[tuple[str, StoredTensor], ...]
    model: Any

    def run(self, read: Callable[[StoredTensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = deepcopy(self.converter)
        for pattern, part in self.parts:
            converter.add_tensor(self.name, part.name, pattern, read(part))
        try:
            made = converter.convert(self.name, model=self.model, config=self.model.config)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            first = self.parts[0][1]
            raise CheckpointError(
                f"{first.where} and {len(self.parts) - 1} more do not make {self.name}: {error}",
                hint="Take config.json and weights from the same checkpoint.",
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def tensor(self, target: str, example: torch.Tensor) -> Tensor:
        first = self.parts[0][1]
        return Tensor(
            _NAMES[example.dtype], tuple(example.shape), lambda: [_bytes_of(self.run(read_tensor)[target])], first.where
        )


def _initial_value(model: PreTrainedModel, name: str) -> torch.Tensor | None:
    """Return what the class itself sets a tensor to, such as sinusoidal positions; None where that is random."""
    owner, _, leaf = name.rpartition(".")
    made = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = deepcopy(model.get_submodule(owner)).to_empty(device="cpu", recurse=False)
            value: torch.Tensor = getattr(module, leaf)
            value.data.fill_(torch.nan if value.is_floating_point() else seed)
            model._init_weights(module)  # type: ignore[no-untyped-call]
            made.append(getattr(module, leaf).detach())
    return made[0] if torch.equal(*made) else None


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in tensors:
        raise CheckpointError(
            f"{tensors[name].origin} and {tensor.origin} are the same tensor {name}",
            hint="Load and save the model once with transformers.",
        )
    tensors[name] = tensor


def _without_data(part: StoredTensor) -> torch.Tensor:
    return torch.empty(part.shape, dtype=STORED_DTYPES[part.dtype], device="meta")


def read_tensor(part: StoredTensor) -> torch.Tensor:
    """Return a stored tensor's values.

    Examples
    --------
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> from daskinfer.models.checkpoints.tensorfiles import read_weights
    >>> from daskinfer.models.folder import LocalFolder
    >>> save_file({"w": torch.tensor([1.0, 2.0])}, "model.safetensors")
    >>> read_tensor(read_weights(LocalFolder(Path(".")))["w"])
    tensor([1., 2.])
    """
    return _tensor_of(b"".join(part.pieces()), part.dtype).reshape(part.shape)


def _tensor_of(data: bytes, dtype: str) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=STORED_DTYPES[dtype])
        if data
        else torch.empty(0, dtype=STORED_DTYPES[dtype])
    )


def _bytes_of(value: torch.Tensor) -> bytes:
    flat: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    data: bytes = flat.tobytes()
    return data


def _cast_pieces(tensor: Tensor, dtype: str) -> Iterator[bytes]:
    pieces: Iterable[bytes] = tensor.pieces()
    for piece in pieces:
        values = _tensor_of(piece, tensor.dtype)
        narrow = values.to(FLOATS[dtype])
        if bool((narrow.isinf() & ~values.isinf()).any()):
            raise CheckpointError(
                f"{tensor.origin}: values up to {values.abs().max().item():.3g} do not fit {FLOATS[dtype]}",
                hint="Convert to bfloat16 or float32.",
            )
        yield _bytes_of(narrow)
