from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.reference import run_unsplit
from daskinfer.testing.stages import cut_checkpoint, make_batch, read_blob, run_through


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny("BertForSequenceClassification"), tmp_path / "checkpoint"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def blobs(directory: Path) -> dict[str, bytes]:
    return {group.name: group.blob() for group in inspect_checkpoint(directory).groups}


def test_every_tensor_is_published_once_under_its_normal_name(copy: Path) -> None:
    source = inspect_checkpoint(copy)
    assert (source.architecture, source.dtype) == ("BertForSequenceClassification", "float32")
    assert [group.name for group in source.groups] == [
        "embeddings", "layer.0", "layer.1", "layer.2", "layer.3", "pooler", "classifier"
    ]  # fmt: skip
    assert {"config.json", "tokenizer.json"} <= source.files.keys()
    original = {name.removeprefix("bert."): tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    published: dict[str, bytes] = {}
    for group in source.groups:
        for name, (_, _, data) in read_blob(group.blob).items():
            assert name not in published
            published[name] = bytes(data)
    assert published == {name: tensor.numpy().tobytes() for name, tensor in original.items()}


def test_blobs_are_deterministic_and_have_no_trace_of_the_source(copy: Path, tmp_path: Path) -> None:
    edit_tensors(copy, lambda tensors: None)
    moved = Path(shutil.copytree(copy, tmp_path / "elsewhere"))
    assert blobs(copy) == blobs(moved)


def test_sharded_checkpoints_publish_the_same_bytes(copy: Path) -> None:
    whole = blobs(copy)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + number % 3}-of-00003.safetensors" for number, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, copy / shard)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert blobs(copy) == whole
    (copy / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        inspect_checkpoint(copy)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_stored_low_precision_is_kept(copy: Path, dtype: torch.dtype, name: str) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    assert inspect_checkpoint(copy).dtype == name
    batch = make_batch([9, 4])
    result = run_through(cut_checkpoint(copy, [0, 2], dtype=name), batch)["embedding"]
    assert np.array_equal(result, run_unsplit(copy, [batch], dtype=name)[0])


def test_old_names_are_mapped_and_stored_buffers_dropped(copy: Path) -> None:
    expected = blobs(copy)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]

    edit_tensors(copy, age)
    assert blobs(copy) == expected
    assert inspect_checkpoint(copy).provenance["dropped"] == "embeddings.position_ids"


def test_a_missing_tokenizer_json_is_built_from_the_vocabulary(minilm: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, directory)
    (directory / "model.safetensors").symlink_to(minilm / "model.safetensors")
    built = json.loads(inspect_checkpoint(directory).files["tokenizer.json"])
    assert built["model"]["vocab"] == json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        inspect_checkpoint(directory)


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncate(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.truncate((directory / "model.safetensors").stat().st_size - 10)


def damage_header(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[8:10] = b"{{"
    (directory / "model.safetensors").write_bytes(data)


def claim_huge_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors"),
        (pickle_only, "pickled weights"),
        (truncate, "truncated"),
        (damage_header, "header cannot be read"),
        (claim_huge_header, "not a whole safetensors file"),
        (lambda path: (path / "model.safetensors").write_bytes(b"abc"), "not a whole safetensors file"),
        (lambda path: edit_config(path, model_type="gpt2"), "'gpt2' is not supported"),
        (lambda path: edit_config(path, auto_map={"AutoModel": "x.Y"}), "its own model code"),
        (lambda path: edit_config(path, is_decoder=True), "a decoder"),
        (lambda path: edit_config(path, position_embedding_type="relative_key"), "relative_key"),
        (lambda path: edit_config(path, num_hidden_layers=5), "says 5 layers, the weights hold 4"),
        (lambda path: edit_config(path, num_hidden_layers=3), "says 3 layers, the weights hold 4"),
        (
            lambda path: (path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]'),
            "module Dense is not supported",
        ),
        (lambda path: (path / "modules.json").write_text('{"a": 1}'), r"modules\.json: cannot be read"),
        (lambda path: edit_config(path, vocab_size=50), r"word_embeddings\.weight has 97 rows, .* should have 50"),
        (lambda path: edit_config(path, hidden_size=64), "has 32 rows, .* should have 64"),
        (lambda path: edit_config(path, num_hidden_layers="many"), "num_hidden_layers must be a positive number"),
        (
            lambda path: edit_tensors(path, lambda t: t.pop("bert.encoder.layer.2.output.dense.bias")),
            r"missing tensor encoder\.layer\.2\.output\.dense\.bias in layer\.2",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"bert.encoder.layer.0.odd": torch.ones(1)})),
            r"unexpected tensor encoder\.layer\.0\.odd",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"pooler.dense.bias": torch.ones(32)})),
            r"are the same tensor pooler\.dense\.bias",
        ),
        (
            lambda path: edit_tensors(path, lambda t: [t.pop("classifier.weight"), t.pop("classifier.bias")]),
            "no 'classifier'",
        ),
    ],
)
def test_unusable_checkpoints_are_refused(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        inspect_checkpoint(copy)
    assert caught.value.hint
