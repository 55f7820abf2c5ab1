"""What the tokenizer returns beside the ids reaches the model: rows among longer ones equal plain transformers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer, ProphetNetConfig

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoints.checkpoint import inspect_checkpoint
from daskinfer.models.proofs.outlines import trace_task
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.testing.fixtures.tasks import fill_task, run_task
from daskinfer.testing.models.tinymodels import make_tiny

TEXTS = [
    "the small cat sleeps",
    "a dog and a river",
    "cat",
    "the sun is in the river of stone and the dog sleeps, water falls.",
]
WITH_TYPES = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}


def change_settings(folder: Path, **settings: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def ask_published(folder: Path, task: str = "embed", **options: Any) -> TaskRequest:
    found = inspect_checkpoint(folder)
    return TaskRequest(task, ModelOptions(**options), found.architecture, found.files)


def embed_alone(folder: Path) -> np.ndarray:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        vectors = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state.mean(1)[0] for text in TEXTS]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1).numpy()


def embed(folder: Path) -> tuple[np.ndarray, set[str]]:
    request = ask_published(folder)
    module = fill_task(build_task(request, "float32"), folder)
    encoded, refused = make_encoder(request, row_length(request)).encode({"text": TEXTS})
    assert not refused
    return run_task(module, encoded)["embedding"], {array.name for array in module.inputs}


def make_xlnet(folder: Path) -> Path:
    make_tiny(folder, "XLNetModel")
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    tokenizer.save(path)
    change_settings(folder, padding_side="left", **WITH_TYPES)
    return folder


def test_token_types_reach_the_model(tmp_path: Path) -> None:
    folder = make_xlnet(tmp_path)
    vectors, names = embed(folder)
    assert "token_type_ids" in names
    assert np.abs(vectors - embed_alone(folder)).max() < 1e-5


@pytest.mark.parametrize("architecture", ["GPT2Model", "BertModel", "XLNetModel"])
@pytest.mark.parametrize("returned", [True, False])
def test_types_that_are_all_0_are_given_where_the_tokenizer_returns_them(
    architecture: str, returned: bool, tmp_path: Path
) -> None:
    # GPT-2 adds a word's embedding for them and XLNet a segment's; without them, neither does.
    folder = make_tiny(tmp_path, architecture)
    names = WITH_TYPES["model_input_names"]
    change_settings(folder, model_input_names=names if returned else [names[0], names[2]])
    vectors, taken = embed(folder)
    assert taken == {"input_ids", "attention_mask"}
    assert np.abs(vectors - embed_alone(folder)).max() < 1e-5


def test_types_of_0_change_no_bit_of_bert(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "BertModel")
    with_types, _ = embed(folder)
    change_settings(folder, model_input_names=["input_ids", "attention_mask"])
    assert np.array_equal(embed(folder)[0], with_types)


@pytest.mark.parametrize("architecture", ["BertModel", "FNetModel"])
def test_rows_of_a_model_without_mask_share_no_padding(architecture: str, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, architecture)
    change_settings(folder, model_input_names=["input_ids"])
    request = ask_published(folder)
    assert build_task(request, "float32")._text.given == ("input_ids",)  # type: ignore[union-attr]
    sharing = trace_task(request, "float32").sharing
    assert sharing is not None
    assert sharing.rows == "same length"


def test_a_row_as_long_as_the_positions_is_tried_before_anything_runs(tmp_path: Path) -> None:
    # The decoder of ProphetNet has two positions fewer than its configuration says.
    config = ProphetNetConfig(
        vocab_size=120,
        hidden_size=32,
        num_decoder_layers=1,
        num_decoder_attention_heads=4,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
        is_encoder_decoder=False,
        is_decoder=True,
        architectures=["ProphetNetForCausalLM"],
    )
    files = ask_published(make_tiny(tmp_path, "BertModel")).files
    files = {**files, "config.json": json.dumps(config.to_dict()).encode()}
    request = TaskRequest("score", ModelOptions(), "ProphetNetForCausalLM", files)
    with pytest.raises(CheckpointError, match=r"rows of 7, 12, 25, 40 tokens .* IndexError") as raised:
        trace_task(request, "float32")
    assert "max_length" in str(raised.value.hint)
    trace_task(replace(request, options=ModelOptions(max_length=32)), "float32")


def test_cut_rows_are_known_by_their_number(tmp_path: Path) -> None:
    request = ask_published(make_tiny(tmp_path, "BertModel"), max_length=6)
    encoded, refused = make_encoder(request, 6).encode({"text": [TEXTS[0], "\ud800", TEXTS[1], "cat"]})
    assert list(refused) == [1]
    assert encoded.lengths.tolist() == [6, 6, 3]
    assert encoded.truncated.tolist() == [1]
