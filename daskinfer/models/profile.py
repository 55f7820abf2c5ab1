"""What a model costs, told from its manifest and configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from daskinfer.errors import CheckpointError
from daskinfer.models.families import Family, family_of
from daskinfer.spec.plan import LayerProfile, ModelProfile
from daskinfer.spec.snapshot import Manifest, TensorEntry

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Lookups, two additions and a LayerNorm: about this many operations for each element of an embedded token.
_EMBEDDING_FLOPS = 10


def profile_model(manifest: Manifest, config: Mapping[str, Any], task: str, dtype: str) -> ModelProfile:
    """Return the model as planning sees it, with only the groups that the task needs.

    Parameters
    ----------
    manifest
        The snapshot.
    config
        Its config.json.
    task
        `embed` or `classify`.
    dtype
        Precision the job computes in; see `resolve_dtype`.

    Raises
    ------
    CheckpointError
        If the snapshot lacks a group that the task needs.
    """
    family = family_of(config)
    by_name = {group.name: group.tensors for group in manifest.groups}

    def measure(name: str, flops_per_token: int | None = None) -> LayerProfile:
        tensors = by_name.get(name)
        if tensors is None:
            raise CheckpointError(
                f"snapshot of {manifest.model} ({manifest.architecture}): no tensors for {name!r}, needed to {task}",
                hint=f"It holds {', '.join(by_name)}.",
            )
        size = sum(prod(tensor.shape) for tensor in tensors) * ITEM_BYTES[dtype]
        flops = _matmul_flops(tensors) if flops_per_token is None else flops_per_token
        return LayerProfile(name=name, parameter_bytes=size, flops_per_token=flops)

    return ModelProfile(
        architecture=manifest.architecture,
        hidden=family.hidden(config),
        max_positions=family.max_positions(config),
        entry=(measure("embeddings", _entry_flops(family, config, by_name.get("embeddings", ()))),),
        layers=tuple(measure(f"layer.{number}") for number in range(family.depth(config))),
        # A head computes once a row, which is nothing beside the layers' work on every token.
        head=tuple(measure(name, 0) for name in family.head_groups(task)),
    )


def resolve_dtype(dtype: str, manifest: Manifest) -> str:
    """Return the precision that `auto` stands for: the stored one, float32 where that cannot be computed in."""
    if dtype != "auto":
        return dtype
    return manifest.dtype if manifest.dtype in ITEM_BYTES else "float32"


def _matmul_flops(tensors: tuple[TensorEntry, ...]) -> int:
    """Two operations a weight; attention's own products grow with the row and are equal in every layer."""
    return sum(2 * prod(tensor.shape) for tensor in tensors if len(tensor.shape) == 2)


def _entry_flops(family: Family, config: Mapping[str, Any], tensors: tuple[TensorEntry, ...]) -> int:
    projection = tuple(tensor for tensor in tensors if family.projection and tensor.name.startswith(family.projection))
    return _EMBEDDING_FLOPS * family.hidden(config) + _matmul_flops(projection)
