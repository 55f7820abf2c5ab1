"""What a stage holds after loading: the precision of every tensor as transformers has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5EncoderModel

from daskinfer import api
from daskinfer.models.execution.stage import Stage
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import cut_checkpoint, request_of, run_through
from daskinfer.testing.models.reference import run_unsplit

Tiny = Callable[[str], Path]


def parameters(stage: Stage) -> dict[str, torch.Tensor]:
    """Return what a stage holds of its own, by name in its model."""
    model: Any = stage._runner._forward.__self__.model.model  # type: ignore[attr-defined]
    return {name: tensor for name, tensor in model.named_parameters() if not tensor.isnan().any()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stages", [1, 3])
def test_what_stays_float32_stays_so(tmp_path: Path, tiny: Tiny, dtype: str, stages: int) -> None:
    directory = tiny("T5EncoderModel")
    registry = Registry(str(tmp_path / "registry"))
    api.publish("m", str(directory), registry=registry.url)
    request = request_of(registry, "m@v1")
    whole: Any = T5EncoderModel.from_pretrained(directory, dtype=getattr(torch, dtype))
    wanted = dict(whole.eval().encoder.named_parameters(remove_duplicate=False))
    kept = {name for name, tensor in wanted.items() if tensor.dtype == torch.float32}
    assert bool(kept) == (dtype == "float16")

    outline, parts = cut_checkpoint(registry, "m@v1", request, stages, dtype=dtype)
    for part in parts:
        for name, tensor in parameters(part).items():
            assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name

    ids = np.random.default_rng(0).integers(5, 50, (3, 9))
    mask = np.ones_like(ids)
    (expected,) = run_unsplit(directory, [(ids.astype(np.int32), mask.sum(1).astype(np.int32))], dtype=dtype)
    assert np.array_equal(run_through(parts, {"input_ids": ids, "attention_mask": mask})["embedding"], expected)
    # What crosses is what the model really computes: float32 beside weights of half that size.
    crossing = {item.tensor.dtype for item in outline.layers[1].cut}
    assert crossing == ({"float32", "float16"} if kept else {"bfloat16"})
