"""Models whose rows change each other, through the registry and a loaded stage, against plain transformers row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from daskinfer.models.tasks.encode import make_encoder
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.spec.outline import Sharing
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import cut_checkpoint, request_of, run_through
from daskinfer.testing.models.tinymodels import make_tiny

TEXTS = [
    "the small cat sleeps",
    "a dog and a river",
    "cat",
    "the sun " * 30,
    "stone",
    "water of the river " * 10,
    "dogs",
]
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
SPARSE = {"block_size": 4, "num_random_blocks": 1, "attention_type": "block_sparse"}


@pytest.mark.parametrize(
    ("architecture", "more", "wanted"),
    [
        ("FNetModel", {}, Sharing(rows="same length")),
        ("BigBirdModel", SPARSE, Sharing(rows="same length", reset=True)),
    ],
)
def test_rows_that_would_change_each_other_come_out_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, more: dict[str, Any], wanted: Sharing
) -> None:
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "cache"))
    directory = make_tiny(tmp_path / "bert", "BertModel")
    model_class: Any = getattr(transformers, architecture)
    config = json.loads((directory / "config.json").read_text())
    sizes = SIZES | {"vocab_size": config["vocab_size"], "pad_token_id": config.get("pad_token_id", 0)} | more
    torch.manual_seed(0)
    plain = model_class(model_class.config_class(**sizes)).eval()
    for path in (directory / "model.safetensors", directory / "config.json"):
        path.unlink()
    plain.save_pretrained(directory)
    registry = Registry(str(tmp_path / "registry"))
    publish_checkpoint(registry, "tiny", str(directory))
    request = request_of(registry, "tiny", options=ModelOptions(max_length=200, normalize=False, pooling="mean"))
    outline, stages = cut_checkpoint(registry, "tiny", request)
    assert outline.sharing is not None
    assert outline.sharing.model_copy(update={"reason": None}) == wanted
    encoded, refused = make_encoder(request, 200).encode({"text": TEXTS})
    assert not refused
    got: dict[int, Any] = {}
    for microbatch in pack_microbatches(encoded.lengths, 512, outline.sharing):
        result = run_through(stages, encoded.batch(microbatch.rows, microbatch.length))["embedding"]
        got |= dict(zip(microbatch.rows, result, strict=True))
    for row in range(len(TEXTS)):
        ids = torch.as_tensor(encoded.ids[encoded.starts[row] : encoded.starts[row + 1]]).long()[None]
        fresh = model_class.from_pretrained(directory).eval()
        with torch.inference_mode():
            alone = fresh(input_ids=ids).last_hidden_state.mean(1)[0].numpy()
        assert np.abs(got[row] - alone).max() < 1e-5, f"row {row} of {ids.shape[1]} tokens"
