"""Stages of a checkpoint directory in one process, without a registry or a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.families import family_of
from daskinfer.models.stage import RawTensor, Stage, load_stage
from daskinfer.spec.recipe import ModelOptions

Batch = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Token ids (rows, tokens) and lengths (rows,)."""


def read_blob(blob: Callable[[], bytes]) -> dict[str, RawTensor]:
    """A group's tensors, parsed by safetensors itself."""
    parse: Any = safetensors.deserialize
    return {name: (entry["dtype"], tuple(entry["shape"]), memoryview(entry["data"])) for name, entry in parse(blob())}


def cut_checkpoint(
    directory: Path,
    starts: Iterable[int],
    *,
    task: str = "embed",
    options: ModelOptions | None = None,
    dtype: str = "float32",
    threads: int = 1,
) -> list[Stage]:
    """The checkpoint's stages; `starts` are the first layers of all of them."""
    source = inspect_checkpoint(directory)
    config = json.loads(source.files["config.json"])
    edges = [*starts, family_of(config).depth(config)]
    return [
        load_stage(
            config=config,
            task=task,
            options=options or ModelOptions(),
            groups={group.name: partial(read_blob, group.blob) for group in source.groups},
            first=first,
            last=last,
            dtype=dtype,
            threads=threads,
        )
        for first, last in pairwise(edges)
    ]


def run_through(stages: list[Stage], batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """What the last stage returns."""
    hidden: Any = None
    for stage in stages:
        hidden = stage.run(*batch, hidden)
    assert isinstance(hidden, dict)
    return hidden


def make_batch(lengths: Iterable[int], *, width: int | None = None, vocabulary: int = 90, pad: int = 0) -> Batch:
    """Random ids, padded to `width`; never the pad id inside a row."""
    sizes = np.array(list(lengths), dtype=np.int32)
    generator = np.random.default_rng(7)
    ids = generator.integers(5, vocabulary, (len(sizes), width or sizes.max()), dtype=np.int32)
    ids[np.arange(ids.shape[1]) >= sizes[:, None]] = pad
    return ids, sizes
