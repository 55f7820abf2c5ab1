"""Stages of a checkpoint in one process, loaded from a registry as workers do it, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from daskinfer.models.stage import Stage, load_stage
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.versions import versions
from daskinfer.runtime.outlines import find_outline
from daskinfer.spec.outline import InputArray, Outline
from daskinfer.spec.plan import Numerics, StagePlan
from daskinfer.spec.recipe import ModelOptions
from daskinfer.storage.nodecache import load_tensors
from daskinfer.storage.registry.catalog import Registry

Array = np.ndarray[Any, Any]


def request_of(
    registry: Registry,
    reference: str,
    task: str = "embed",
    options: ModelOptions | None = None,
    arrays: Sequence[InputArray] = (),
) -> TaskRequest:
    """What a recipe would ask of a published checkpoint."""
    manifest = registry.manifest(registry.resolve(reference).snapshot)
    files = {file.path: registry.file(manifest, file.path) for file in manifest.files}
    return TaskRequest(task, options or ModelOptions(), manifest.architecture, files, manifest.entry, tuple(arrays))


def cut_checkpoint(
    registry: Registry,
    reference: str,
    request: TaskRequest,
    stages: int | Sequence[int] = 1,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    offload: str = "none",
    scratch: Path | None = None,
) -> tuple[Outline, list[Stage]]:
    """A published checkpoint's outline and its stages: a number of them, or the first layers of all of them."""
    manifest = registry.manifest(registry.resolve(reference).snapshot)
    outline = find_outline(registry.url, request, dtype)
    layers = len(outline.layers)
    starts = [layers * stage // stages for stage in range(stages)] if isinstance(stages, int) else list(stages)
    numerics = Numerics(dtype=dtype, device=device, attention="sdpa", threads=1, **versions())
    loaded = [
        load_stage(
            request=request,
            outline=outline,
            manifest=manifest,
            stage=StagePlan.model_validate(
                {"index": index, "first": first, "last": last, "parameter_bytes": 0, "share": 1, "offload": offload}
            ),
            numerics=numerics,
            read=partial(load_tensors, registry.url),
            scratch=None if scratch is None else str(scratch),
        )
        for index, (first, last) in enumerate(pairwise([*starts, layers]))
    ]
    return outline, loaded


def run_through(stages: Sequence[Stage], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the last stage returns."""
    received: Any = ()
    for stage in stages:
        received, _ = stage.run(inputs, received)
    assert isinstance(received, dict)
    return received
