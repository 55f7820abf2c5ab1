"""The BERT family as data: where each architecture keeps its embeddings, layers and heads, and what they are called.

No torch here: planning needs to know a model's groups long before anyone loads one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskinfer.errors import CheckpointError

# Names inside one layer; each comes with a .weight and a .bias.
_BERT_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT_LAYER = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
_BERT_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_RENAMED = {"gamma": "weight", "beta": "bias"}
ATTENTION = "sdpa"
"""Attention implementation that every model runs with."""
CLASSIFIER_SUFFIX = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class Family:
    """How one model type lays out its modules and tensors."""

    model_type: str
    """`model_type` of config.json."""
    prefix: str
    """Attribute under which a model with a head keeps its base model."""
    layers: str
    """Path of the layer list inside the base model."""
    layer_modules: tuple[str, ...]
    """Modules with weight and bias inside one layer."""
    tables: tuple[str, ...]
    """Embedding tables under `embeddings`."""
    classifier: tuple[str, ...]
    """Groups that `classify` needs after the last layer."""
    offset_positions: bool = False
    """Positions are counted from `pad_token_id + 1`."""
    projection: str | None = None
    """Module between embeddings and layers, where their widths differ."""
    hidden_key: str = "hidden_size"
    """Key of the width in config.json."""
    depth_key: str = "num_hidden_layers"
    """Key of the number of layers in config.json."""

    @property
    def entry(self) -> tuple[str, ...]:
        """Modules of the base model that run before the first layer, in order."""
        return ("embeddings",) if self.projection is None else ("embeddings", self.projection)

    @property
    def layer_tensors(self) -> frozenset[str]:
        """Names of all tensors of one layer, relative to it."""
        return frozenset(f"{module}.{part}" for module in self.layer_modules for part in ("weight", "bias"))

    def depth(self, config: Mapping[str, Any]) -> int:
        """Return the number of layers."""
        return positive(config, self.depth_key)

    def hidden(self, config: Mapping[str, Any]) -> int:
        """Return the width of the activations between layers."""
        return positive(config, self.hidden_key)

    def max_positions(self, config: Mapping[str, Any]) -> int:
        """Return the longest input in tokens."""
        positions = positive(config, "max_position_embeddings")
        return positions - self.pad_id(config) - 1 if self.offset_positions else positions

    def pad_id(self, config: Mapping[str, Any]) -> int:
        """Return the token id that the model takes for padding."""
        pad = config.get("pad_token_id")
        return int(self.offset_positions) if pad is None else int(pad)

    def entry_tensors(self, config: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of all tensors of the group `embeddings`."""
        names = {f"embeddings.{table}.weight" for table in self.tables}
        names |= {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
        if self.projection is not None and config.get("embedding_size", 128) != self.hidden(config):
            names |= {f"{self.projection}.weight", f"{self.projection}.bias"}
        return frozenset(names)

    def head_groups(self, task: str) -> tuple[str, ...]:
        """Return the groups that a task needs after the last layer."""
        return self.classifier if task == "classify" else ()


def _roberta(model_type: str) -> Family:
    return Family(
        model_type,
        "roberta",
        "encoder.layer",
        _BERT_LAYER,
        _BERT_TABLES,
        classifier=("classifier",),
        offset_positions=True,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bert", "bert", "encoder.layer", _BERT_LAYER, _BERT_TABLES, classifier=("pooler", "classifier")),
        _roberta("roberta"),
        _roberta("xlm-roberta"),
        _roberta("camembert"),
        Family(
            "distilbert",
            "distilbert",
            "transformer.layer",
            _DISTILBERT_LAYER,
            _BERT_TABLES[:2],
            classifier=("pre_classifier", "classifier"),
            hidden_key="dim",
            depth_key="n_layers",
        ),
        Family(
            "electra",
            "electra",
            "encoder.layer",
            _BERT_LAYER,
            _BERT_TABLES,
            classifier=("classifier",),
            projection="embeddings_project",
        ),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that a config.json belongs to.

    Raises
    ------
    CheckpointError
        For an unknown model type, and for variants that the family's own class would compute wrongly.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported", hint=f"Supported: {', '.join(FAMILIES)}."
        )
    refusals = {
        "auto_map": "it brings its own model code",
        "quantization_config": "its weights are quantised",
        "is_decoder": "it is a decoder",
        "add_cross_attention": "it has cross-attention",
    }
    for key, reason in refusals.items():
        if config.get(key):
            raise CheckpointError(
                f"config.json: {key} is set: {reason}, which is not supported",
                hint="Publish a plain encoder in float32, bfloat16 or float16.",
            )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"config.json: position_embedding_type {config['position_embedding_type']!r} is not supported",
            hint="Only models with absolute positions can be published.",
        )
    return family


def normal_name(family: Family, name: str) -> str:
    """Return a tensor's name without the base model's prefix, and with today's names for LayerNorm's parameters."""
    name = name.removeprefix(f"{family.prefix}.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_RENAMED[m[1]]}", name)


def group_of(family: Family, name: str) -> str:
    """Return the layer group of a tensor: `embeddings`, `layer.<i>`, or the head's name."""
    name = normal_name(family, name)
    if name.startswith(f"{family.layers}."):
        return f"layer.{name[len(family.layers) + 1 :].partition('.')[0]}"
    head = name.partition(".")[0]
    return "embeddings" if head in family.entry else head


def positive(config: Mapping[str, Any], key: str) -> int:
    """Return a size from config.json; `CheckpointError` where it is not a positive integer."""
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"config.json: {key} must be a positive number, not {value!r}", hint="Fetch the checkpoint again."
        )
    return value
