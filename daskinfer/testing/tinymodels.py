"""Tiny random checkpoints with a working tokenizer: what tests and first tries run on."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_LETTERS = string.ascii_lowercase + string.digits
_WORDS = [
    "the",
    "of",
    "a",
    "and",
    "in",
    "is",
    "small",
    "cat",
    "dog",
    "river",
    "sun",
    "stone",
    "water",
    "sleeps",
    "falls",
]


def make_tiny_bert(
    directory: Path,
    *,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    seed: int = 0,
    architecture: str = "BertModel",
    labels: int = 3,
) -> Path:
    """Write a random BERT-family checkpoint as `save_pretrained` lays it out.

    Parameters
    ----------
    directory
        Where to; made if missing.
    layers, hidden, heads
        Encoder layers, width and attention heads.
    seed
        Of the weights; equal arguments give equal bytes.
    architecture
        A transformers class of the BERT family: BertModel, RobertaForSequenceClassification, DistilBertModel ...
    labels
        Number of classes of a `...ForSequenceClassification`.

    Returns
    -------
    Path
        The directory.
    """
    model_class: Any = getattr(transformers, architecture)
    roberta_like = model_class.config_class.model_type in ("roberta", "xlm-roberta", "camembert")
    tokenizer = _make_tokenizer(roberta_like)
    options: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 66 if roberta_like else 64,
        "pad_token_id": tokenizer.token_to_id("<pad>" if roberta_like else "[PAD]"),
        "type_vocab_size": 1 if roberta_like else 2,
    }
    if model_class.config_class.model_type == "distilbert":
        options |= {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * hidden}
    if model_class.config_class.model_type == "electra":
        options["embedding_size"] = hidden // 2
    if architecture.endswith("ForSequenceClassification"):
        options["id2label"] = {number: f"class-{number}" for number in range(labels)}
        options["label2id"] = {f"class-{number}": number for number in range(labels)}
    model = model_class(model_class.config_class(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + 0.1 * noise if is_scale else 0.2 * noise)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    _save_tokenizer(tokenizer, roberta_like, directory)
    return directory


def _make_tokenizer(roberta_like: bool) -> Tokenizer:
    first = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta_like else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    begin, end, unknown = ("<s>", "</s>", "<unk>") if roberta_like else ("[CLS]", "[SEP]", "[UNK]")
    entries = [*first, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *".,!?'-", *_WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.add_special_tokens(first)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, roberta_like: bool, directory: Path) -> None:
    names = (
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
        if roberta_like
        else {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
    )
    factory: Any = transformers.PreTrainedTokenizerFast
    fast = factory(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.save_pretrained(directory)
