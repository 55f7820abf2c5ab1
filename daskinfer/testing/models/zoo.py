"""One tiny model of every family that daskinfer says it runs, with random weights: what cutting is tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from daskinfer.models.architecture import instantiate, make_config
from daskinfer.spec.outline import InputArray
from daskinfer.testing.models.ownmodels import fill_weights, make_own, make_sequential, make_unet
from daskinfer.testing.models.zoofamilies import FAMILIES
from daskinfer.testing.models.zoosettings import (
    DECODER,
    ENCODER,
    FOUR_STAGES,
    SEQUENCE,
    SIDE,
    T5,
    VISION,
    VOCABULARY,
    WHISPER,
    WIDTH,
)

_IDS = InputArray(name="input_ids", dtype="int64", shape=(None,), bound=VOCABULARY)
_MASK = InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2)
_TEXT = (_IDS, _MASK)
_IMAGE = (InputArray(name="pixel_values", dtype="float32", shape=(3, SIDE, SIDE)),)
_SOUND = InputArray(name="input_features", dtype="float32", shape=(16, 40))


@dataclass(frozen=True, slots=True)
class ZooCase:
    """A tiny model and what it takes."""

    name: str
    """Unique: bert, llama-tied ..."""
    family: str
    """As people call it: BERT, Llama ..."""
    architecture: str
    """Class of transformers; name of the function for models of other code."""
    inputs: tuple[InputArray, ...]
    """What the forward takes, by keyword."""
    config: Mapping[str, Any] | None
    """Content of config.json; None for models of other code."""
    build: Callable[[], nn.Module]
    """Makes the model."""

    def make(self) -> tuple[nn.Module, tuple[InputArray, ...]]:
        """Return the model, float32 with seeded random weights in evaluation mode, and what it takes."""
        return self.build(), self.inputs


def make_inputs(case: ZooCase, rows: int, length: int, seed: int) -> dict[str, Tensor]:
    """Return inputs of a case for `rows` rows padded to `length` tokens; the same arguments give the same values.

    Rows end at random where the model takes a mask: the first is never padded, the last is where there are several.

    Examples
    --------
    >>> inputs = make_inputs(ZOO[0], rows=2, length=5, seed=0)
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'input_ids': (2, 5), 'attention_mask': (2, 5)}
    """
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(1, length + 1, (rows,), generator=generator)
    ends[0] = length
    if rows > 1:
        ends[-1] = max(1, length // 2)
    mask = (torch.arange(length) < ends[:, None]).long()
    is_masked = any(array.name.endswith("attention_mask") for array in case.inputs)

    def fill(array: InputArray) -> Tensor:
        shape = [rows, *(length if size is None else size for size in array.shape)]
        if array.name.endswith("attention_mask"):
            return mask
        if array.bound is None:
            return torch.randn(shape, generator=generator)
        ids = torch.randint(5, array.bound, shape, generator=generator)
        return ids * mask if is_masked and array.shape == (None,) else ids

    return {array.name: fill(array) for array in case.inputs}


def make_model(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a model of transformers, float32 with seeded random weights in evaluation mode.

    Examples
    --------
    >>> bert = next(case for case in ZOO if case.name == "bert")
    >>> model = make_model(bert.architecture, bert.config)
    >>> type(model).__name__, model.training
    ('BertModel', False)
    """
    model_class: Any = getattr(transformers, architecture)
    return fill_weights(instantiate(model_class, make_config(config), torch.float32))


def _case(
    name: str, family: str, architecture: str, inputs: tuple[InputArray, ...], model_type: str, **options: Any
) -> ZooCase:
    config = {"model_type": model_type, "architectures": [architecture], **options}
    return ZooCase(name, family, architecture, inputs, config, partial(make_model, architecture, config))


def _own(name: str, family: str, array: InputArray, build: Callable[[], nn.Module]) -> ZooCase:
    return ZooCase(name, family, build.__name__, (array,), None, build)


_DECODER_IDS = _IDS.model_copy(update={"name": "decoder_input_ids"})
_FEW_DECODER_IDS = _DECODER_IDS.model_copy(update={"shape": (5,)})

_KINDS: dict[str, tuple[InputArray, ...]] = {
    "text": _TEXT,
    "texts": (*_TEXT, _DECODER_IDS),
    "image": _IMAGE,
    "series": (InputArray(name="past_values", dtype="float32", shape=(24,)),),
}

ZOO: tuple[ZooCase, ...] = (
    _case("bert", "BERT", "BertModel", _TEXT, "bert", **ENCODER),
    _case("roberta", "RoBERTa", "RobertaModel", _TEXT, "roberta", **ENCODER),
    _case(
        "distilbert",
        "DistilBERT",
        "DistilBertModel",
        _TEXT,
        "distilbert",
        vocab_size=VOCABULARY,
        dim=WIDTH,
        n_layers=4,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
    ),
    _case(
        "modernbert",
        "ModernBERT",
        "ModernBertModel",
        _TEXT,
        "modernbert",
        **ENCODER,
        global_attn_every_n_layers=2,
        local_attention=8,
        pad_token_id=0,
        bos_token_id=1,
        cls_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    ),
    _case("mpnet", "MPNet", "MPNetModel", _TEXT, "mpnet", **ENCODER),
    _case(
        "deberta-v2",
        "DeBERTa-v2",
        "DebertaV2Model",
        _TEXT,
        "deberta-v2",
        **ENCODER,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=8,
    ),
    _case("electra", "ELECTRA", "ElectraModel", _TEXT, "electra", **ENCODER, embedding_size=16),
    _case("albert", "ALBERT", "AlbertModel", _TEXT, "albert", **ENCODER, embedding_size=16),
    _case("t5-encoder", "T5 encoder", "T5EncoderModel", _TEXT, "t5", **T5),
    _case("t5", "T5", "T5ForConditionalGeneration", (*_TEXT, _FEW_DECODER_IDS), "t5", **T5),
    _case("bart", "BART", "BartModel", (*_TEXT, _DECODER_IDS), "bart", **SEQUENCE, max_position_embeddings=64),
    _case("llama", "Llama", "LlamaForCausalLM", _TEXT, "llama", **DECODER),
    _case("llama-tied", "Llama, tied", "LlamaForCausalLM", _TEXT, "llama", **DECODER | {"tie_word_embeddings": True}),
    _case("qwen3", "Qwen3", "Qwen3ForCausalLM", _TEXT, "qwen3", **DECODER),
    _case(
        "qwen3-moe",
        "Qwen3 MoE",
        "Qwen3MoeForCausalLM",
        _TEXT,
        "qwen3_moe",
        **DECODER,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    _case(
        "gemma3",
        "Gemma 3",
        "Gemma3ForCausalLM",
        _TEXT,
        "gemma3_text",
        **DECODER | {"tie_word_embeddings": True},
        query_pre_attn_scalar=8,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    _case("mistral", "Mistral", "MistralForCausalLM", _TEXT, "mistral", **DECODER, sliding_window=6),
    _case("mixtral", "Mixtral", "MixtralForCausalLM", _TEXT, "mixtral", **DECODER, num_local_experts=4),
    _case("phi3", "Phi-3", "Phi3ForCausalLM", _TEXT, "phi3", **DECODER),
    _case(
        "gpt2",
        "GPT-2",
        "GPT2LMHeadModel",
        _TEXT,
        "gpt2",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    _case(
        "opt",
        "OPT",
        "OPTForCausalLM",
        _TEXT,
        "opt",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    _case(
        "mamba",
        "Mamba",
        "MambaForCausalLM",
        _TEXT,
        "mamba",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        state_size=4,
    ),
    _case("vit", "ViT", "ViTForImageClassification", _IMAGE, "vit", **VISION),
    _case(
        "swin",
        "Swin",
        "SwinModel",
        _IMAGE,
        "swin",
        image_size=SIDE,
        patch_size=2,
        window_size=2,
        embed_dim=8,
        depths=[2, 2, 2, 2],
        num_heads=[2, 2, 2, 2],
    ),
    _case("dinov2", "DINOv2", "Dinov2Model", _IMAGE, "dinov2", **VISION),
    _case(
        "clip",
        "CLIP",
        "CLIPModel",
        (*_TEXT, *_IMAGE),
        "clip",
        projection_dim=16,
        text_config=ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=VISION,
    ),
    _case("convnext", "ConvNeXt", "ConvNextForImageClassification", _IMAGE, "convnext", **FOUR_STAGES),
    _case(
        "resnet",
        "ResNet",
        "ResNetForImageClassification",
        _IMAGE,
        "resnet",
        **FOUR_STAGES,
        embedding_size=8,
        layer_type="basic",
    ),
    _case(
        "segformer",
        "SegFormer",
        "SegformerForSemanticSegmentation",
        _IMAGE,
        "segformer",
        **FOUR_STAGES,
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
    ),
    _case("whisper-encoder", "Whisper encoder", "WhisperForAudioClassification", (_SOUND,), "whisper", **WHISPER),
    _case(
        "whisper",
        "Whisper",
        "WhisperForConditionalGeneration",
        (_SOUND, _FEW_DECODER_IDS),
        "whisper",
        **WHISPER,
    ),
    *(
        _case(name, family, architecture, _KINDS[kind], model_type, **options)
        for name, family, architecture, kind, model_type, options in FAMILIES
    ),
    _own("unet", "U-Net", InputArray(name="image", dtype="float32", shape=(3, 16, 16)), make_unet),
    _own("sequential", "nn.Sequential", InputArray(name="input", dtype="float32", shape=(8,)), make_sequential),
    _own("own", "a module of your own", InputArray(name="features", dtype="float32", shape=(8,)), make_own),
)
