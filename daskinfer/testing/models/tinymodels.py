"""Tiny random text checkpoints with a working tokenizer: what tests and first tries run on."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_LETTERS = string.ascii_lowercase + string.digits
_WORDS = "the of a and in is small cat dog river sun stone water sleeps falls"
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet")
_DECODERS = ("llama", "qwen3", "gemma3_text", "mistral", "mixtral", "phi3", "gpt2", "opt", "mamba")
_BERT_NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
_ROBERTA_NAMES = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}


def make_tiny(
    directory: Path, architecture: str, *, seed: int = 0, labels: int = 3, settings: dict[str, Any] | None = None
) -> Path:
    """Write a random text checkpoint as `save_pretrained` lays it out.

    Parameters
    ----------
    directory
        Where to; made if missing.
    architecture
        A transformers class for texts: BertModel, T5EncoderModel, LlamaForCausalLM ...
    seed
        Of the weights; equal arguments give equal bytes.
    labels
        Number of classes of a `...ForSequenceClassification`.
    settings
        Configuration values of your own.

    Returns
    -------
    Path
        The directory.

    Examples
    --------
    >>> folder = make_tiny(Path("tiny"), "BertForSequenceClassification", labels=2)
    >>> json.loads((folder / "config.json").read_text())["id2label"]
    {'0': 'class-0', '1': 'class-1'}
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    model_class: Any = getattr(transformers, architecture)
    model_type = model_class.config_class.model_type
    tokenizer, names = _make_tokenizer(model_type)
    options = _common_settings(model_type, tokenizer, names) | _FAMILIES.get(model_type, {})
    if architecture.endswith("ForSequenceClassification"):
        options["id2label"] = {number: f"class-{number}" for number in range(labels)}
        options["label2id"] = {f"class-{number}": number for number in range(labels)}
    model = model_class(model_class.config_class(**options | (settings or {})))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + 0.1 * noise if is_scale else 0.2 * noise)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    factory: Any = transformers.PreTrainedTokenizerFast
    factory(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(directory)
    return directory


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
    """Write a random checkpoint of the BERT family, with a size of your choice; see `make_tiny`.

    Parameters
    ----------
    layers, hidden, heads
        Encoder layers, width and attention heads.

    Examples
    --------
    >>> folder = make_tiny_bert(Path("tiny"), layers=2, hidden=16, heads=2)
    >>> json.loads((folder / "config.json").read_text())["hidden_size"]
    16
    """
    size = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
    }
    if architecture.startswith("DistilBert"):
        size |= {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * hidden}
    if architecture.startswith("Electra"):
        size["embedding_size"] = hidden // 2
    return make_tiny(directory, architecture, seed=seed, labels=labels, settings=size)


def add_sentence_modules(
    directory: Path,
    *,
    pooling: dict[str, Any],
    dense: tuple[tuple[int, int, str], ...] = (),
    normalize: bool = False,
    text: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """Add sentence-transformers' files to a checkpoint.

    Parameters
    ----------
    directory
        The checkpoint.
    pooling
        Content of 1_Pooling/config.json.
    dense
        (in, out, class of torch.nn) of every Dense module; random weights.
    normalize
        Whether a Normalize module ends the row.
    text
        Content of sentence_bert_config.json.
    prompts
        Content of config_sentence_transformers.json.

    Examples
    --------
    >>> folder = make_tiny_bert(Path("tiny"), layers=1)
    >>> pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    >>> _ = add_sentence_modules(folder, pooling=pooling, normalize=True)
    >>> [module["path"] for module in json.loads((folder / "modules.json").read_text())]
    ['', '1_Pooling', '2_Normalize']
    """
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write_json(directory / "1_Pooling" / "config.json", pooling)
    for number, (inner, outer, activation) in enumerate(dense, 2):
        modules.append((f"{number}_Dense", "Dense"))
        _write_json(
            directory / f"{number}_Dense" / "config.json",
            {
                "in_features": inner,
                "out_features": outer,
                "bias": True,
                "activation_function": f"torch.nn.modules.activation.{activation}",
            },
        )
        weights = {"linear.weight": (outer, inner), "linear.bias": (outer,)}
        tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in weights.items()}
        save_file(tensors, directory / f"{number}_Dense" / "model.safetensors")
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    _write_json(directory / "modules.json", listed)
    _write_json(directory / "sentence_bert_config.json", text or {})
    _write_json(directory / "config_sentence_transformers.json", prompts or {})
    return directory


_DISTILBERT = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
_DECODER = {"num_key_value_heads": 2, "head_dim": 8}
_FAMILIES: dict[str, dict[str, Any]] = {
    "distilbert": _DISTILBERT,
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 8,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
    "llama": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER | {"sliding_window": 6},
    "mixtral": _DECODER | {"num_local_experts": 4},
    "phi3": _DECODER,
    "gemma3_text": _DECODER
    | {
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "mamba": {"state_size": 4},
    "xlnet": {"d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 64},
}


def _common_settings(model_type: str, tokenizer: Tokenizer, names: dict[str, str]) -> dict[str, Any]:
    offset = model_type in _ROBERTA_LIKE
    options: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66 if offset else 64,
        "pad_token_id": tokenizer.token_to_id(names["pad_token"]),
        "type_vocab_size": 1 if offset else 2,
    }
    if model_type in _DECODERS or model_type in ("t5", "bart", "modernbert"):
        special = {key.replace("_token", "_token_id"): tokenizer.token_to_id(token) for key, token in names.items()}
        options |= {key: special[key] for key in ("bos_token_id", "eos_token_id") if key in special}
    if model_type == "xlnet":  # it refuses any limit
        del options["max_position_embeddings"]
    if model_type == "modernbert":
        options |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return options


def _make_tokenizer(model_type: str) -> tuple[Tokenizer, dict[str, str]]:
    """Return a tokenizer and its special tokens by their names in transformers."""
    if model_type in (*_ROBERTA_LIKE, *_DECODERS, "t5", "bart"):
        first = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        names = {"bos_token": "<s>", "eos_token": "</s>"} | _ROBERTA_NAMES
        begin, end = "<s>", "</s>"
    else:
        first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]"} | _BERT_NAMES
        begin, end = "[CLS]", "[SEP]"
    entries = [*first, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *".,!?'-", *_WORDS.split()]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tokenizer.add_special_tokens(first)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    template = {"gpt2": "$A", "t5": f"$A {end}"} | dict.fromkeys(_DECODERS[:5], f"{begin} $A")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template.get(model_type, f"{begin} $A {end}"),
        special_tokens=[(token, vocabulary[token]) for token in (begin, end)],
    )
    return tokenizer, names


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
