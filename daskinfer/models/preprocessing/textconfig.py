"""What a text model's config.json says of its inputs and its width, under whatever keys; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskinfer.errors import CheckpointError

_WIDTH_KEYS = ("word_embed_proj_dim", "hidden_size", "d_model", "dim", "n_embd", "emb_dim")
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
# Their positions are counted from the one after the padding id, and a padding token has none of its own.
_OFFSET_POSITIONS = frozenset(
    [
        "altclip_text_model",
        "bridgetower_text_model",
        "camembert",
        "clap_text_model",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
# They need no table of positions, whatever length their configuration mentions.
_UNLIMITED = frozenset(
    [
        "bloom",
        "longt5",
        "mamba",
        "mamba2",
        "mpt",
        "mt5",
        "rwkv",
        "switch_transformers",
        "t5",
        "transfo-xl",
        "umt5",
        "xlnet",
    ]
)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of config.json that describes the text model.

    Examples
    --------
    >>> text_config({"model_type": "clip", "text_config": {"hidden_size": 512}})
    {'hidden_size': 512}
    """
    part = config.get("text_config")
    return part if isinstance(part, Mapping) else config


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest row in tokens that the model has positions for; None where there is no limit.

    Examples
    --------
    >>> max_positions({"model_type": "bert", "max_position_embeddings": 512})
    512
    >>> max_positions({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    512
    >>> max_positions({"model_type": "t5", "n_positions": 512}) is None
    True
    """
    config = text_config(config)
    model_type = config.get("model_type")
    if model_type in _UNLIMITED or config.get("position_biased_input") is False:  # DeBERTa, by distances alone
        return None
    limit = next((config[key] for key in _POSITION_KEYS if isinstance(config.get(key), int)), 0)
    if model_type in _OFFSET_POSITIONS:
        limit -= pad_id(config) + 1
    return limit if limit > 0 else None


def pad_id(config: Mapping[str, Any]) -> int:
    """Return the id that short rows are filled with: the model's own, 0 where any will do.

    Examples
    --------
    >>> pad_id({"model_type": "bert", "pad_token_id": 3})
    3
    >>> pad_id({"model_type": "roberta"}), pad_id({"model_type": "gpt2"})
    (1, 0)
    """
    config = text_config(config)
    pad = config.get("pad_token_id")
    if isinstance(pad, int) and pad >= 0:
        return pad
    return int(config.get("model_type") in _OFFSET_POSITIONS)


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """Return how many token ids the model knows; None where config.json does not say.

    Examples
    --------
    >>> vocab_size({"vocab_size": 30522}), vocab_size({}) is None
    (30522, True)
    """
    size = text_config(config).get("vocab_size")
    return size if isinstance(size, int) else None


def hidden_width(config: Mapping[str, Any]) -> int:
    """Return the width of the last hidden state.

    Raises
    ------
    CheckpointError
        Where config.json does not say.

    Examples
    --------
    >>> hidden_width({"d_model": 768})
    768
    >>> hidden_width({})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: config.json names no width: none of word_embed_proj_dim, hidden_size, ...
    """
    config = text_config(config)
    width = next((config[key] for key in _WIDTH_KEYS if isinstance(config.get(key), int)), 0)
    if width < 1:
        raise CheckpointError(
            f"config.json names no width: none of {', '.join(_WIDTH_KEYS)} is a positive number",
            hint="Fetch the checkpoint again.",
        )
    return width
