"""Small checkpoints for tests of whatever reads or publishes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing import CheckpointSource, GroupSource, publish


def make_checkpoint(
    seed: int = 0, groups: tuple[str, ...] = ("embeddings", "layer.0", "layer.1"), rows: int = 16
) -> CheckpointSource:
    """Return a checkpoint of random tensors: two a group, `weight` (rows, 8) and `bias` (8,), float32.

    The same arguments give the same bytes.
    """
    return CheckpointSource(
        architecture="TestModel",
        dtype="float32",
        files={"config.json": b'{"architectures": ["TestModel"]}', "vocab.txt": f"[PAD]\nword{seed}\n".encode()},
        groups=[GroupSource(name, partial(_make_blob, seed, number, name, rows)) for number, name in enumerate(groups)],
        provenance={"source": "daskinfer.testing"},
    )


def make_registry(url: str | Path, versions: int = 3) -> Registry:
    """Return a registry with versions of the checkpoint `mini`, the alias prod moved along."""
    registry = Registry(str(url))
    for seed in range(versions):
        publish(registry, "mini", make_checkpoint(seed), "prod")
    return registry


def _make_blob(seed: int, number: int, name: str, rows: int) -> bytes:
    random = np.random.default_rng([seed, number])
    return save(
        {
            f"{name}.weight": random.standard_normal((rows, 8), dtype=np.float32),
            f"{name}.bias": random.standard_normal(8, dtype=np.float32),
        }
    )
