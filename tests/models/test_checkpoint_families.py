"""Whatever the names in the files, what is published is what `from_pretrained` loads, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.checkpoints.checkpoint import CheckpointFiles, inspect_checkpoint

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
DECODER = SMALL | {"num_key_value_heads": 1}
IMAGE = SMALL | {"image_size": 16, "patch_size": 8}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", SMALL),
    "roberta": ("RobertaForSequenceClassification", SMALL),
    "deberta": ("DebertaV2ForMaskedLM", SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "vit": ("ViTForImageClassification", IMAGE),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    "mixtral": ("MixtralForCausalLM", DECODER | {"num_local_experts": 3}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
    ),
    "llama": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 64, "n_positions": 32}),
    "whisper": (
        "WhisperForConditionalGeneration",
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
    ),
    "mamba": ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 4}),
    "clip": ("CLIPModel", {"text_config": SMALL, "vision_config": IMAGE}),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
    ),
}


def save_model(directory: Path, kind: str, **changes: Any) -> Path:
    """Write a checkpoint of random weights as `save_pretrained` does."""
    name, options = MODELS[kind]
    model_class: Any = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**options | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(directory)
    return directory


def rename_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = directory / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(file)).items()}, file)


def read_all(found: CheckpointFiles) -> dict[str, torch.Tensor]:
    """All tensors of a snapshot, tied ones under each of their names."""
    tensors: dict[str, torch.Tensor] = {}
    for group in found.groups:
        for name, value in load(group.blob()).items():
            assert name not in tensors
            tensors[name] = value
    return tensors | {alias: tensors[name] for alias, name in found.tied.items()}


def load_reference(directory: Path, architecture: str) -> dict[str, torch.Tensor]:
    model_class: Any = getattr(transformers, architecture)
    model = model_class.from_pretrained(directory)
    prefix = stored_prefix(model)
    return {name.removeprefix(prefix): value for name, value in model.state_dict().items()}


def check_equal(directory: Path) -> CheckpointFiles:
    """Publish a directory and compare it with what transformers loads."""
    found = inspect_checkpoint(directory)
    published, wanted = read_all(found), load_reference(directory, found.architecture)
    assert published.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(value, published[name])] == []
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_published_weights_are_those_that_transformers_loads(kind: str, tmp_path: Path) -> None:
    found = check_equal(save_model(tmp_path, kind))
    assert found.architecture == MODELS[kind][0]
    assert "dropped" not in found.provenance and "untied" not in found.provenance


def test_mixtral_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    def age(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {}
        for name, value in tensors.items():
            if ".mlp.experts." not in name:
                old[name.replace(".mlp.", ".block_sparse_moe.")] = value
                continue
            base = name.partition(".mlp.experts.")[0] + ".block_sparse_moe.experts"
            for expert, part in enumerate(value):
                if name.endswith("down_proj"):
                    old[f"{base}.{expert}.w2.weight"] = part
                else:
                    old[f"{base}.{expert}.w1.weight"], old[f"{base}.{expert}.w3.weight"] = part.chunk(2)
        return old

    directory = save_model(tmp_path, "mixtral")
    rename_tensors(directory, age)
    assert "model.layers.2.block_sparse_moe.experts.1.w3.weight" in load_file(directory / "model.safetensors")
    found = check_equal(directory)
    assert [group.name for group in found.groups if group.stored is None] == ["layers.0", "layers.1", "layers.2"]

    def lose_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["model.layers.1.block_sparse_moe.experts.1.w1.weight"]
        return tensors

    rename_tensors(directory, lose_one)
    with pytest.raises(CheckpointError, match=r"layers\.1\."):
        inspect_checkpoint(directory)


def test_vit_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    names = {
        "vit.layers.": "vit.encoder.layer.",
        ".attention.q_proj.": ".attention.attention.query.",
        ".attention.k_proj.": ".attention.attention.key.",
        ".attention.v_proj.": ".attention.attention.value.",
        ".attention.o_proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }

    def age(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {}
        for name, value in tensors.items():
            for new, before in names.items():
                name = name.replace(new, before)
            old[name] = value
        return old

    directory = save_model(tmp_path, "vit")
    rename_tensors(directory, age)
    assert "vit.encoder.layer.1.attention.attention.query.weight" in load_file(directory / "model.safetensors")
    found = check_equal(directory)
    # Renamed is not converted: the bytes are the file's own.
    assert all(group.stored is not None for group in found.groups)


def test_shards_publish_the_same_bytes(tmp_path: Path) -> None:
    whole = inspect_checkpoint(save_model(tmp_path / "whole", "llama"))
    directory = save_model(tmp_path / "shards", "llama")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + number % 3}-of-00003.safetensors" for number, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = inspect_checkpoint(directory)
    assert {group.name: group.blob() for group in found.groups} == {group.name: group.blob() for group in whole.groups}


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    found = inspect_checkpoint(save_model(tmp_path, "t5"))
    assert found.tied == dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    )
    assert sum(name == "shared.weight" for group in found.groups for name, _ in group.tensors) == 1


def test_a_tied_model_that_stores_both_copies(tmp_path: Path) -> None:
    once = inspect_checkpoint(save_model(tmp_path, "llama-tied"))
    blobs = [group.blob() for group in once.groups]

    def add_head(value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + value}

    rename_tensors(tmp_path, add_head(0))
    equal = check_equal(tmp_path)
    assert equal.tied == once.tied == {"lm_head.weight": "embed_tokens.weight"}
    assert [group.blob() for group in equal.groups] == blobs
    rename_tensors(tmp_path, add_head(1))
    different = check_equal(tmp_path)
    assert different.tied == {}
    assert different.provenance["untied"] == "lm_head.weight"


def test_a_head_stands_in_for_the_embeddings_it_is_tied_to(tmp_path: Path) -> None:
    expected = read_all(inspect_checkpoint(save_model(tmp_path, "llama-tied")))

    def keep_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "lm_head.weight": tensors.pop("model.embed_tokens.weight")}

    rename_tensors(tmp_path, keep_head)
    published = read_all(check_equal(tmp_path))
    assert all(torch.equal(value, published[name]) for name, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_is_the_one_that_transformers_does(dtype: torch.dtype, tmp_path: Path) -> None:
    directory = save_model(tmp_path, "t5")  # keeps `wo` in float32 where the rest is float16
    name = str(dtype).removeprefix("torch.")
    found = inspect_checkpoint(directory, dtype=name)
    published = read_all(found)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    assert found.dtype == name
    assert {value.dtype for value in published.values()} == {dtype} | ({torch.float32} if name == "float16" else set())
    for key, value in model.state_dict().items():
        assert torch.equal(published[key], value) and published[key].dtype == value.dtype, key
