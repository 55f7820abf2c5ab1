from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from daskinfer.errors import CheckpointError
from daskinfer.models.textconfig import hidden_width, max_positions, pad_id, vocab_size
from daskinfer.testing.tinymodels import make_tiny

LEARNED = [
    "BertModel",
    "RobertaModel",
    "XLMRobertaModel",
    "CamembertModel",
    "MPNetModel",
    "DistilBertModel",
    "ElectraModel",
    "AlbertModel",
    "GPT2Model",
    "OPTModel",
]
UNLIMITED = ["T5EncoderModel", "MambaModel"]


@pytest.mark.parametrize("architecture", [*LEARNED, *UNLIMITED])
def test_the_longest_row_is_the_longest_that_runs(tmp_path: Path, architecture: str) -> None:
    directory = make_tiny(tmp_path, architecture)
    config = json.loads((directory / "config.json").read_text())
    model = getattr(transformers, architecture).from_pretrained(directory)
    limit = max_positions(config)

    def run(length: int) -> tuple[int, ...]:
        ids = torch.full((1, length), 7)
        with torch.inference_mode():
            return tuple(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape)

    assert limit == (None if architecture in UNLIMITED else 64)
    assert run(limit or 600) == (1, limit or 600, hidden_width(config))
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError)):
            run(limit + 1)
    assert vocab_size(config) == model.config.vocab_size
    assert pad_id(config) == model.config.pad_token_id


def test_what_config_json_may_leave_out() -> None:
    assert max_positions({"model_type": "llama"}) is None
    assert max_positions({"text_config": {"model_type": "llama", "max_position_embeddings": 9}}) == 9
    assert max_positions({"model_type": "whisper", "max_target_positions": 448}) == 448
    assert max_positions({"text_config": {"model_type": "clap_text_model", "max_position_embeddings": 514}}) == 512
    assert pad_id({"model_type": "roberta"}) == 1
    assert pad_id({"model_type": "llama", "pad_token_id": -1}) == 0
    assert pad_id({"model_type": "gpt2", "pad_token_id": None}) == 0
    assert vocab_size({}) is None
    with pytest.raises(CheckpointError, match="no width"):
        hidden_width({"model_type": "bert"})
