"""Checkpoints as older versions of transformers saved them: published as `from_pretrained` loads them, or refused."""

from __future__ import annotations

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

Tensors = dict[str, torch.Tensor]

WORDS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
IMAGE = WORDS | {"image_size": 16, "patch_size": 8}
PAIR: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 32}
GPTJ = GPT | {"rotary_dim": 4}
NEO: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "window_size": 4,
    "attention_types": [[["global", "local"], 1]],
}
SOUND: dict[str, Any] = WORDS | {
    "conv_dim": [8, 8],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def causal_mask(size: int = 32, window: int | None = None, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    mask = torch.ones(size, size).tril()
    return (mask if window is None else mask - torch.ones(size, size).tril(-window))[None, None].to(dtype)


def frequencies(width: int, base: float = 10000.0) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2).float() / width)


def add_to_layers(owner: str, **values: torch.Tensor) -> Callable[[Tensors], Tensors]:
    """Put the same buffers into both layers; `owner` has a place for the layer's number."""
    return lambda tensors: {
        **tensors,
        **{f"{owner.format(layer)}.{name}": value for layer in range(2) for name, value in values.items()},
    }


def add(**values: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in values.items()}


def rename(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        changed = {}
        for name, value in tensors.items():
            for new, old in pairs:
                name = name.replace(new, old)
            changed[name] = value
        return changed

    return change


def drop(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if not any(part in name for part in parts)}


def copy(**values: str) -> Callable[[Tensors], Tensors]:
    """Store a tied tensor under other names as well."""
    return lambda tensors: tensors | {new.replace("__", "."): tensors[old] for new, old in values.items()}


GAMMA = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
POSITIONS = torch.arange(32)[None]
RELATIVE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

LAYOUTS: dict[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors], str]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        GPT,
        add_to_layers("transformer.h.{}.attn", bias=causal_mask(dtype=torch.float32), masked_bias=torch.tensor(-1e4)),
        "transformer.h.1.attn.masked_bias",
    ),
    "gpt2-base": (
        "GPT2LMHeadModel",
        GPT,
        lambda tensors: {
            name.removeprefix("transformer."): value
            for name, value in add_to_layers("transformer.h.{}.attn", bias=causal_mask())(tensors).items()
        },
        "h.0.attn.bias",
    ),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        NEO,
        lambda tensors: {
            **add_to_layers("transformer.h.{}.attn.attention", masked_bias=torch.tensor(-1e9))(tensors),
            "transformer.h.0.attn.attention.bias": causal_mask(),
            "transformer.h.1.attn.attention.bias": causal_mask(window=4),
        },
        "transformer.h.1.attn.attention.bias",
    ),
    "gptj": (
        "GPTJForCausalLM",
        GPTJ,
        add_to_layers("transformer.h.{}.attn", bias=causal_mask(), masked_bias=torch.tensor(-1e9)),
        "transformer.h.1.attn.masked_bias",
    ),
    "codegen": (
        "CodeGenForCausalLM",
        GPTJ | {"n_head": 4, "rotary_dim": 2},
        add_to_layers("transformer.h.{}.attn", causal_mask=causal_mask(dtype=torch.bool)),
        "transformer.h.0.attn.causal_mask",
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        WORDS,
        add_to_layers(
            "gpt_neox.layers.{}.attention",
            **{"bias": causal_mask(), "masked_bias": torch.tensor(-1e9), "rotary_emb.inv_freq": frequencies(2)},
        ),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ),
    "bert": (
        "BertForMaskedLM",
        WORDS,
        lambda tensors: {
            **rename(*GAMMA)(tensors),
            "bert.embeddings.position_ids": POSITIONS,
            "bert.pooler.dense.weight": torch.ones(16, 16),
            "bert.pooler.dense.bias": torch.ones(16),
            "cls.seq_relationship.weight": torch.ones(2, 16),
            "cls.seq_relationship.bias": torch.ones(2),
        },
        "cls.seq_relationship.bias",
    ),
    "roberta": (
        "RobertaForMaskedLM",
        WORDS,
        lambda tensors: {
            **copy(lm_head__decoder__weight="roberta.embeddings.word_embeddings.weight")(tensors),
            "roberta.embeddings.position_ids": POSITIONS,
            "roberta.embeddings.token_type_ids": torch.zeros(1, 32, dtype=torch.int64),
        },
        "roberta.embeddings.token_type_ids",
    ),
    "xlm-roberta": (
        "XLMRobertaForSequenceClassification",
        WORDS,
        add(roberta__embeddings__position_ids=POSITIONS),
        "roberta.embeddings.position_ids",
    ),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 64, "max_position_embeddings": 32},
        add(distilbert__embeddings__position_ids=POSITIONS),
        "distilbert.embeddings.position_ids",
    ),
    "mpnet": ("MPNetModel", WORDS, add(embeddings__position_ids=POSITIONS), "embeddings.position_ids"),
    "llama": (
        "LlamaForCausalLM",
        WORDS,
        add_to_layers("model.layers.{}.self_attn.rotary_emb", inv_freq=frequencies(8).half()),
        "model.layers.1.self_attn.rotary_emb.inv_freq",
    ),
    "falcon": (
        "FalconForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64},
        add_to_layers("transformer.h.{}.self_attention.maybe_rotary", inv_freq=frequencies(8).bfloat16()),
        "transformer.h.0.self_attention.maybe_rotary.inv_freq",
    ),
    "bloom": (
        "BloomForCausalLM",
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64},
        lambda tensors: {name.removeprefix("transformer."): value for name, value in tensors.items()},
        "",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        T5,
        lambda tensors: {
            **copy(
                encoder__embed_tokens__weight="shared.weight",
                decoder__embed_tokens__weight="shared.weight",
                lm_head__weight="shared.weight",
            )(tensors),
            RELATIVE: torch.ones(32, 2),
        },
        RELATIVE,
    ),
    "t5-encoder": (
        "T5EncoderModel",
        T5,
        lambda tensors: tensors | {RELATIVE: torch.ones(32, 2), "decoder.final_layer_norm.weight": torch.ones(16)},
        "decoder.final_layer_norm.weight",
    ),
    "bart": (
        "BartForConditionalGeneration",
        PAIR,
        lambda tensors: {
            **drop("final_logits_bias")(tensors),
            "model.encoder.version": torch.tensor([3.0]),
            "model.decoder.version": torch.tensor([3.0]),
        },
        "model.decoder.version",
    ),
    "marian": (
        "MarianMTModel",
        PAIR,
        drop("embed_positions"),
        "",
    ),
    "opt": (
        "OPTForCausalLM",
        WORDS | {"ffn_dim": 32, "word_embed_proj_dim": 16},
        lambda tensors: tensors | {"model.decoder.version": torch.tensor([1.0])},
        "model.decoder.version",
    ),
    "clip": (
        "CLIPModel",
        {"text_config": WORDS, "vision_config": IMAGE},
        add(
            text_model__embeddings__position_ids=POSITIONS,
            vision_model__embeddings__position_ids=torch.arange(5)[None],
        ),
        "vision_model.embeddings.position_ids",
    ),
    "vit": (
        "ViTForImageClassification",
        IMAGE,
        lambda tensors: (
            tensors | {"vit.pooler.dense.weight": torch.ones(16, 16), "vit.pooler.dense.bias": torch.ones(16)}
        ),
        "vit.pooler.dense.bias",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        PAIR | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
        copy(proj_out__weight="model.decoder.embed_tokens.weight"),
        "",
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        SOUND,
        rename(
            ("conv.parametrizations.weight.original0", "conv.weight_g"),
            ("conv.parametrizations.weight.original1", "conv.weight_v"),
        ),
        "",
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
        drop("num_batches_tracked"),
        "",
    ),
}


def save(directory: Path, name: str, options: dict[str, Any]) -> Path:
    model_class: Any = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**options))
    kept = model._keys_to_ignore_on_load_missing or []
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if not any(one in path or "embed_positions" in path for one in kept):
                parameter.normal_()
    model.save_pretrained(directory)
    return directory


def change_tensors(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = directory / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(file)).items()}, file, {"format": "pt"})


def read_all(found: CheckpointFiles) -> Tensors:
    tensors: Tensors = {}
    for group in found.groups:
        tensors |= load(group.blob())
    return tensors | {alias: tensors[name] for alias, name in found.tied.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_old_layout_is_published_as_transformers_loads_it(layout: str, tmp_path: Path) -> None:
    name, options, age, left_out = LAYOUTS[layout]
    directory = save(tmp_path, name, options)
    fresh = inspect_checkpoint(directory)
    blobs = {group.name: group.blob() for group in fresh.groups}
    change_tensors(directory, age)
    found = inspect_checkpoint(directory)
    assert found.missing == ()
    model_class: Any = getattr(transformers, name)
    loaded = model_class.from_pretrained(directory)
    prefix = stored_prefix(loaded)
    published = read_all(found)
    wanted = {key.removeprefix(prefix): value for key, value in loaded.state_dict().items()}
    assert published.keys() == wanted.keys()
    assert [key for key, value in wanted.items() if not torch.equal(value, published[key])] == []
    assert {group.name: group.blob() for group in found.groups} == blobs
    assert left_out in found.provenance.get("dropped", "").split(", ")


@pytest.mark.parametrize(
    ("layout", "name", "value"),
    [
        ("gptj", "transformer.h.0.attn.bias", torch.ones(1, 1, 32, 32, dtype=torch.uint8)),
        ("gptj", "transformer.h.0.attn.bias", causal_mask(window=3)),
        ("gptj", "transformer.h.0.attn.bias", causal_mask(dtype=torch.float32) * 2),
        ("gptj", "transformer.h.0.attn.masked_bias", torch.tensor(-1.0)),
        ("gptj", "transformer.h.0.attn.scale", torch.tensor(-1e9)),
        ("gptj", "transformer.h.0.attn.q_proj.bias", torch.zeros(16)),
        ("gpt-neo", "transformer.h.0.attn.attention.bias", causal_mask(window=5)),
        ("falcon", "transformer.h.0.self_attention.maybe_rotary.inv_freq", frequencies(8, 500.0)),
        ("roberta", "roberta.embeddings.token_type_ids", torch.ones(1, 32, dtype=torch.int64)),
        ("bert", "bert.embeddings.projection.weight", torch.eye(16)),
        ("llama", "lm_head.bias", torch.zeros(64)),
        ("opt", "model.decoder.version.weight", torch.ones(1)),
        ("clip", "text_model.embeddings.scale", torch.ones(1)),
    ],
)
def test_a_tensor_that_would_change_the_result_is_refused(
    layout: str, name: str, value: torch.Tensor, tmp_path: Path
) -> None:
    architecture, options, age, _ = LAYOUTS[layout]
    directory = save(tmp_path, architecture, options)
    change_tensors(directory, lambda tensors: age(tensors) | {name: value})
    with pytest.raises(CheckpointError, match="unexpected tensor"):
        inspect_checkpoint(directory)
