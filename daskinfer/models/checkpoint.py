"""A transformers checkpoint directory, checked and cut into layer groups for publishing.

Tensors get the base model's names, so that a stage reads its groups as they are: no conversion at load.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daskinfer.errors import CheckpointError
from daskinfer.models.families import CLASSIFIER_SUFFIX, Family, family_of, group_of, normal_name, positive
from daskinfer.models.tensorfiles import StoredTensor, read_header, serialize

PLAIN_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
    "LICENSE",
    "NOTICE",
)
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model")
_SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize")
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Buffers that old versions of transformers stored; today's modules compute them.
_COMPUTED = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True, slots=True)
class GroupFile:
    """One layer group, its bytes read only when asked for."""

    name: str
    """embeddings, layer.0, ..., or a head's name."""
    blob: Callable[[], bytes]
    """Return the group as a safetensors file; equal checkpoints give equal bytes."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Everything that publishing a checkpoint stores."""

    architecture: str
    """Class name from the configuration, e.g. BertModel."""
    dtype: str
    """Precision of most of the weights."""
    files: dict[str, bytes]
    """Configuration and tokenizer files by name; `tokenizer.json` is always among them."""
    groups: tuple[GroupFile, ...]
    """Weights, in the order they run: embeddings, layers, heads."""
    provenance: dict[str, str]
    """Where it came from and what was changed."""


def inspect_checkpoint(directory: Path) -> CheckpointFiles:
    """Check a local checkpoint directory and return what there is to publish.

    Weights are not read yet, only the headers of their files.

    Raises
    ------
    CheckpointError
        If the directory is not a whole safetensors checkpoint of a supported architecture.
    """
    config = _read_config(directory)
    try:
        family = family_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error.message}", hint=error.hint) from error
    architecture = str((config.get("architectures") or [family.model_type])[0])
    stored = _read_headers(directory)
    grouped, dropped = _group(directory, family, stored)
    _check_complete(directory, family, config, architecture, grouped)
    files = {name: (directory / name).read_bytes() for name in PLAIN_FILES if (directory / name).is_file()}
    _check_sentence_modules(directory, files.get("modules.json", b"[]"))
    provenance = {"source": directory.resolve().as_posix(), "format": "transformers safetensors"}
    if dropped:
        provenance["dropped"] = ", ".join(dropped)
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = _build_tokenizer(directory, config)
        provenance["tokenizer.json"] = "built from the vocabulary by transformers"
    return CheckpointFiles(
        architecture,
        _main_dtype(directory, stored),
        files,
        tuple(GroupFile(name, partial(serialize, grouped[name])) for name in _in_order(family, config, grouped)),
        provenance,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}",
            hint="Give a folder written by `save_pretrained` or downloaded whole.",
        )
    path = directory / "config.json"
    if not path.is_file():
        adapter = (directory / "adapter_config.json").is_file()
        raise CheckpointError(
            f"{directory}: no config.json" + (", but an adapter: it is not a model by itself" if adapter else ""),
            hint="Merge the adapter into its base model and save that."
            if adapter
            else "A checkpoint directory holds config.json, tokenizer.json and model.safetensors.",
        )
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", hint="Fetch the checkpoint again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: a JSON object is wanted", hint="Fetch the checkpoint again.")
    return config


def _read_headers(directory: Path) -> dict[str, StoredTensor]:
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return read_header(directory / "model.safetensors")
    if not index.is_file():
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in directory.glob(f"*.{suffix}"))
        if pickles:
            raise CheckpointError(
                f"{directory}: only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read",
                hint="Convert them where you trust them: "
                "AutoModel.from_pretrained(DIR).save_pretrained(NEW, safe_serialization=True).",
            )
        raise CheckpointError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json",
            hint="Download the weights too, or save the model with `save_pretrained`.",
        )
    try:
        weight_map: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no readable weight_map", hint="Fetch the checkpoint again.") from error
    headers = {}
    for shard in shards:
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise CheckpointError(
                f"{directory}: the index names {shard}, which is not there", hint="Download every shard."
            )
        headers[shard] = read_header(directory / shard)
    absent = sorted(name for name, shard in weight_map.items() if name not in headers[shard])
    if absent:
        raise CheckpointError(
            f"{directory}: {weight_map[absent[0]]} lacks the tensor {absent[0]} that the index promises",
            hint="Fetch the checkpoint again.",
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _group(
    directory: Path, family: Family, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, list[tuple[str, StoredTensor]]], list[str]]:
    grouped: dict[str, list[tuple[str, StoredTensor]]] = defaultdict(list)
    origin: dict[str, str] = {}
    dropped = []
    for raw, tensor in sorted(stored.items()):
        name = normal_name(family, raw)
        if name in _COMPUTED:
            dropped.append(name)
            continue
        if name in origin:
            raise CheckpointError(
                f"{directory}: {origin[name]} and {raw} are the same tensor {name}",
                hint="Load and save the model once with transformers.",
            )
        origin[name] = raw
        grouped[group_of(family, name)].append((name, tensor))
    return dict(grouped), dropped


def _check_complete(
    directory: Path,
    family: Family,
    config: Mapping[str, Any],
    architecture: str,
    grouped: Mapping[str, list[tuple[str, StoredTensor]]],
) -> None:
    depth = family.depth(config)
    wanted = {"embeddings": family.entry_tensors(config)}
    for number in range(depth):
        wanted[f"layer.{number}"] = frozenset(f"{family.layers}.{number}.{name}" for name in family.layer_tensors)
    found_layers = sum(name.startswith("layer.") for name in grouped)
    extra = sorted(name for name in grouped if name.startswith("layer.") and name not in wanted)
    if extra or found_layers < depth:
        raise CheckpointError(
            f"{directory}: config.json says {depth} layers, the weights hold {found_layers}",
            hint="Take config.json and weights from the same checkpoint.",
        )
    for group, names in wanted.items():
        present = {name for name, _ in grouped.get(group, ())}
        for problem, difference in (("missing", names - present), ("unexpected", present - names)):
            if difference:
                raise CheckpointError(
                    f"{directory}: {problem} tensor {min(difference)} in {group}"
                    + (f" and {len(difference) - 1} more" if len(difference) > 1 else ""),
                    hint=f"The weights do not belong to a plain {family.model_type} model of this configuration.",
                )
    sizes = {name: tensor.shape[:1] for group in wanted for name, tensor in grouped[group]}
    for name, size in {
        "embeddings.word_embeddings.weight": positive(config, "vocab_size"),
        "embeddings.position_embeddings.weight": positive(config, "max_position_embeddings"),
        f"{family.layers}.0.{family.layer_modules[-1]}.weight": family.hidden(config),
    }.items():
        if sizes[name] != (size,):
            raise CheckpointError(
                f"{directory}: {name} has {sizes[name][0]} rows, by config.json it should have {size}",
                hint="Take config.json and weights from the same checkpoint.",
            )
    absent = [name for name in family.classifier if architecture.endswith(CLASSIFIER_SUFFIX) and name not in grouped]
    if absent:
        raise CheckpointError(
            f"{directory}: config.json says {architecture}, but the weights have no {absent[0]!r}",
            hint="Take config.json and weights from the same checkpoint.",
        )


def _check_sentence_modules(directory: Path, modules: bytes) -> None:
    """Refuse a sentence-transformers model with steps that `embed` would leave out."""
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules)]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory / 'modules.json'}: cannot be read ({error})", hint="Fetch it again."
        ) from error
    for kind in kinds:
        if kind not in _SENTENCE_MODULES:
            raise CheckpointError(
                f"{directory / 'modules.json'}: the module {kind} is not supported",
                hint=f"Only {', '.join(_SENTENCE_MODULES)} are; without modules.json the encoder alone is published.",
            )


def _in_order(family: Family, config: Mapping[str, Any], grouped: Mapping[str, Any]) -> list[str]:
    body = ["embeddings", *(f"layer.{number}" for number in range(family.depth(config)))]
    heads = [*family.classifier, *sorted(grouped)]
    return list(dict.fromkeys(name for name in body + heads if name in grouped))


def _main_dtype(directory: Path, stored: Mapping[str, StoredTensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in stored.values():
        sizes[tensor.dtype] += tensor.end - tensor.begin
    dtype = sizes.most_common(1)[0][0]
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{directory}: the weights are stored as {dtype}", hint="Publish them in float32, bfloat16 or float16."
        )
    return _DTYPES[dtype]


def _build_tokenizer(directory: Path, config: Mapping[str, Any]) -> bytes:
    # Without a vocabulary transformers would build a tokenizer of its special tokens alone, and say nothing.
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise CheckpointError(
            f"{directory}: no tokenizer: neither tokenizer.json nor a vocabulary ({', '.join(_VOCABULARIES)})",
            hint="Save the model's tokenizer there with `tokenizer.save_pretrained`.",
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        text: str = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{directory}: no tokenizer.json, and none could be built ({error})",
            hint="Save the model's tokenizer there with `tokenizer.save_pretrained`.",
        ) from error
    if len(tokenizer) > int(config["vocab_size"]):
        raise CheckpointError(
            f"{directory}: the tokenizer knows {len(tokenizer)} tokens, the model {config['vocab_size']}",
            hint="Take tokenizer and weights from the same checkpoint.",
        )
    return text.encode()
