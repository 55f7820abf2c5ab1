from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.tensorfiles import LocalFolder, read_header


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


def test_a_transformer_in_a_folder_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="puts the Transformer in 0_Transformer"):
        inspect_checkpoint(tmp_path)


def test_every_tensor_is_published_once_under_its_normal_name(copy: Path) -> None:
    source = inspect_checkpoint(copy)
    assert (source.architecture, source.dtype) == ("BertForSequenceClassification", "float32")
    layers = [f"encoder.layer.{number}" for number in range(4)]
    assert [group.name for group in source.groups] == ["embeddings", *layers, "pooler", "classifier"]
    assert {"config.json", "tokenizer.json"} <= source.files.keys()
    original = {name.removeprefix("bert."): tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    published: dict[str, torch.Tensor] = {}
    for group in source.groups:
        published |= load(group.blob())
    assert published.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in published.items())


def test_blobs_are_deterministic_and_have_no_trace_of_the_source(copy: Path, tmp_path: Path) -> None:
    edit_tensors(copy, lambda tensors: None)
    moved = Path(shutil.copytree(copy, tmp_path / "elsewhere"))
    assert blobs(copy) == blobs(moved)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_stored_low_precision_is_kept(copy: Path, dtype: torch.dtype, name: str) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    assert inspect_checkpoint(copy).dtype == name
    assert all(tensor.dtype == dtype for blob in blobs(copy).values() for tensor in load(blob).values())


def test_values_that_do_not_fit_are_not_made_infinite(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors["classifier.bias"].fill_(1e6))
    found = inspect_checkpoint(copy, dtype="float16")
    with pytest.raises(CheckpointError, match=r"classifier\.bias: values up to 1e\+06 do not fit"):
        [group.blob() for group in found.groups]
    assert all(group.blob() for group in inspect_checkpoint(copy, dtype="bfloat16").groups)


def test_old_names_are_mapped_and_stored_buffers_dropped(copy: Path) -> None:
    expected = blobs(copy)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["cls.seq_relationship.bias"] = torch.ones(2)

    edit_tensors(copy, age)
    assert blobs(copy) == expected
    dropped = inspect_checkpoint(copy).provenance["dropped"]
    assert dropped == "bert.embeddings.position_ids, cls.seq_relationship.bias"


def test_a_missing_tokenizer_json_is_built_from_the_vocabulary(minilm: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, directory)
    (directory / "model.safetensors").symlink_to(minilm / "model.safetensors")
    built = json.loads(inspect_checkpoint(directory).files["tokenizer.json"])
    assert built["model"]["vocab"] == json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "vocab.txt").unlink()
    assert "tokenizer.json" not in inspect_checkpoint(directory).files


def add_dense(directory: Path, **tensors: torch.Tensor) -> None:
    """Make it a sentence-transformers model that ends with a Dense module."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (directory / "modules.json").write_text(json.dumps(modules))
    for path, config in {
        "1_Pooling": {"pooling_mode_mean_tokens": True},
        "2_Dense": {"in_features": 32, "out_features": 8, "bias": True},
    }.items():
        (directory / path).mkdir()
        (directory / path / "config.json").write_text(json.dumps(config))
    if tensors:
        named = {f"linear.{name}": value for name, value in tensors.items()}
        save_file(named, directory / "2_Dense" / "model.safetensors")
    else:
        (directory / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")


def test_sentence_transformers_modules_come_along(copy: Path) -> None:
    weights = {"weight": torch.randn(8, 32), "bias": torch.randn(8)}
    add_dense(copy, **weights)
    found = inspect_checkpoint(copy)
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"} <= found.files.keys()
    assert found.groups[-1].name == "2_Dense"
    published = load(found.groups[-1].blob())
    assert all(torch.equal(published[f"2_Dense.linear.{name}"], value) for name, value in weights.items())
    assert len(published) == 2


class Malicious:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", ".metadata", "__0_0.distcp"]
)
@pytest.mark.parametrize("with_config", [True, False])
def test_pickles_are_refused_and_never_opened(copy: Path, name: str, with_config: bool) -> None:
    trap = copy / "sprung"
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Malicious(trap)))
    if not with_config:
        (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="can run code") as caught:
        inspect_checkpoint(copy)
    assert "Convert" in str(caught.value.hint)
    assert not trap.exists()
    pickle.loads((copy / name).read_bytes())
    assert trap.exists(), "the trap was not armed"


def truncate(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.truncate((directory / "model.safetensors").stat().st_size - 10)


def damage_header(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[8:10] = b"{{"
    (directory / "model.safetensors").write_bytes(data)


def lose_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.bias": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def mark(directory: Path, made_for: str) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors, directory / "model.safetensors", {"format": made_for})


def split(directory: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write two shards; the second holds a tensor of the first once more, changed."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    weight_map = {name: shard for shard, listed in shards.items() for name in listed}
    for shard, listed in shards.items():
        kept = {name: tensors[name] for name in listed}
        if shard == "model-2.safetensors":
            kept |= {names[0]: change(tensors[names[0]])}
        save_file(kept, directory / shard)
    index = {"metadata": {"total_size": -1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").rename(path / "adapter_config.json"), "an adapter"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "a JSON object is wanted"),
        (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors"),
        (lose_shard, "index names model-00001-of-00002.safetensors, which is not there"),
        (truncate, r"model\.safetensors: .*truncated"),
        (damage_header, "header cannot be read"),
        (
            lambda path: (path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
            "not a whole safetensors file",
        ),
        (lambda path: (path / "model.safetensors").write_bytes(b"abc"), "not a whole safetensors file"),
        (lambda path: edit_config(path, model_type="nothing"), "'nothing' is not known to transformers"),
        (lambda path: edit_config(path, architectures="BertModel"), "architectures is 'BertModel', and not a list"),
        (lambda path: edit_config(path, architectures=[1]), r"architectures is \[1\], and not a list"),
        (lambda path: edit_config(path, auto_map={"AutoModel": "x.Y"}), "code of its own"),
        (lambda path: edit_config(path, quantization_config={"bits": 4}), "quantised"),
        (
            lambda path: edit_config(path, text_config={"quantization_config": {"bits": 4}}),
            r"text_config\.quantization",
        ),
        (lambda path: edit_config(path, compression_config={"format": "x"}), "compression_config is set.* quantised"),
        (lambda path: (path / "quantize_config.json").write_text("{}"), "quantize_config.json is there.* quantised"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "adapter_config.json is beside the model"),
        (lambda path: edit_config(path, quantization={"bits": 4}), "quantization is set.* quantised"),
        (lambda path: (path / "adapter_model.bin").write_text("{}"), "adapter_model.bin is beside the model"),
        (lambda path: (path / "pytorch_adapter.bin").write_text("{}"), "pytorch_adapter.bin is beside the model"),
        (
            lambda path: edit_config(path, transformers_weights="x.safetensors"),
            "transformers_weights is 'x.safetensors'",
        ),
        (lambda path: edit_config(path, transformers_weights="config.json"), "transformers_weights is 'config.json'"),
        (lambda path: mark(path, "flax"), "the order of dimensions of flax"),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"classifier.bias": torch.zeros(3, dtype=torch.int32)})),
            "stored as I32, by the configuration classifier.bias holds floating-point numbers",
        ),
        (lambda path: split(path, lambda t: t + 1), "holds another tensor of that name"),
        (lambda path: edit_config(path, num_hidden_layers=5), r"missing tensor encoder\.layer\.4\."),
        (lambda path: edit_config(path, num_hidden_layers=3), r"there are 3 layers .* weights have encoder\.layer\.3"),
        (lambda path: edit_config(path, vocab_size=50), r"word_embeddings\.weight.* \[97, 32\], .* \[50, 32\]"),
        (lambda path: edit_config(path, hidden_size=64), "its shape is"),
        (lambda path: edit_config(path, num_hidden_layers="many"), "BertForSequenceClassification of it"),
        (
            lambda path: (path / "modules.json").write_text('[{"type": "sentence_transformers.models.CNN"}]'),
            "module CNN is not supported",
        ),
        (lambda path: (path / "modules.json").write_text('{"a": 1}'), r"modules\.json: cannot be read"),
        (add_dense, r"2_Dense: only pickled weights"),
        (lambda path: add_dense(path, weight=torch.ones(8, 31), bias=torch.ones(8)), "2_Dense/config.json it should"),
        (
            lambda path: edit_tensors(path, lambda t: t.pop("bert.encoder.layer.2.output.dense.bias")),
            r"missing tensor encoder\.layer\.2\.output\.dense\.bias\n",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"bert.encoder.layer.0.odd": torch.ones(1)})),
            r"unexpected tensor encoder\.layer\.0\.odd in layer encoder\.layer\.0",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"pooler.dense.bias": torch.ones(32)})),
            r"are the same tensor bert\.pooler\.dense\.bias",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.pop("classifier.bias")),
            r"missing tensor classifier\.bias\n",
        ),
        (
            lambda path: edit_tensors(path, lambda t: [t.pop(name) for name in list(t) if "bert.embeddings" in name]),
            r"missing tensor embeddings\.word_embeddings\.weight and 4 more",
        ),
        (
            lambda path: edit_tensors(path, lambda t: [t.pop(name) for name in list(t) if name.startswith("bert.")]),
            r"missing tensor embeddings\.word_embeddings\.weight",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"bert.embeddings.odd.weight": torch.ones(1)})),
            r"unexpected tensor bert\.embeddings\.odd\.weight: bert\.embeddings of",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"bert.encoder.norm.weight": torch.ones(1)})),
            r"unexpected tensor bert\.encoder\.norm\.weight",
        ),
        (
            lambda path: edit_tensors(path, lambda t: t.update({"classifier.scale": torch.ones(1)})),
            r"unexpected tensor classifier\.scale",
        ),
        (
            # A model that sees both ways computes something else than one that was trained with such a mask.
            lambda path: edit_tensors(
                path,
                lambda t: t.update({"bert.encoder.layer.0.attention.self.bias": torch.ones(64, 64).tril()[None, None]}),
            ),
            r"unexpected tensor encoder\.layer\.0\.attention\.self\.bias",
        ),
        (
            lambda path: edit_tensors(
                path, lambda t: t.update({"bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 32)})
            ),
            "belongs to an adapter that was not merged",
        ),
    ],
)
def test_unusable_checkpoints_are_refused(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        inspect_checkpoint(copy)
    assert caught.value.hint
    assert str(copy) in caught.value.message


_KEY = "bert.encoder.layer.0.attention.self.key"


@pytest.mark.parametrize(
    "name",
    [
        f"{_KEY}.ia3_l.default",
        f"{_KEY}.hada_w1_a.default",
        f"{_KEY}.lokr_w1.default",
        f"{_KEY}.vera_lambda_b.default",
        f"{_KEY}.base_layer.weight",
        "bert.pooler.modules_to_save.default.weight",
        "bert.encoder.layer.0.output.adapters.other.adapter_down.0.weight",
        "bert.prefix_tuning.prefix_tunings.other.wte.weight",
        "prompt_encoder.default.embedding.weight",
        "prompt_embeddings",
    ],
)
def test_what_was_trained_beside_the_weights_is_named(copy: Path, name: str) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({name: torch.ones(8, 32)}))
    with pytest.raises(CheckpointError, match=f"{name.removeprefix('bert.')} belongs to an adapter"):
        inspect_checkpoint(copy)


@pytest.mark.parametrize("leaf", ["qweight", "scales", "SCB", "weight.absmax", "weight_scale", "weight_packed"])
def test_what_a_quantised_weight_is_made_of_is_named(copy: Path, leaf: str) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({f"{_KEY}.{leaf}": torch.ones(4, 32)}))
    with pytest.raises(CheckpointError, match=f"{leaf} belongs to quantised weights"):
        inspect_checkpoint(copy)


def test_what_a_folder_holds_beside_the_weights_changes_nothing(copy: Path) -> None:
    expected = blobs(copy)
    for name in ("pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "model.safetensors.index.json"):
        (copy / name).write_text("{}")
    (copy / "generation_config.json").write_text('{"do_sample": true}')
    (copy / "onnx").mkdir()
    (copy / "onnx" / "adapter_config.json").write_text("{}")
    assert blobs(copy) == expected


def test_copies_in_several_shards_and_tensors_that_an_index_forgets(copy: Path) -> None:
    expected = blobs(copy)
    split(copy, lambda tensor: tensor)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    del index["weight_map"]["classifier.bias"], index["weight_map"]["classifier.weight"]
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert blobs(copy) == expected
    (copy / "model.safetensors.index.json").rename(copy / "other.safetensors.index.json")
    edit_config(copy, transformers_weights="other.safetensors.index.json")
    assert blobs(copy) == expected


def test_bytes_that_are_not_those_of_their_digest_are_refused(copy: Path) -> None:
    stored = next(iter(read_header(LocalFolder(copy), "model.safetensors").values()))
    with pytest.raises(CorruptBlob, match="not those that were published"):
        list(replace(stored, blake3="0" * 64).pieces())


def test_a_backbone_on_a_hub_is_never_fetched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    backbone = {"backbone": "somebody/backbone", "use_pretrained_backbone": True, "use_timm_backbone": False}
    edit_config(copy, model_type="detr", architectures=["DetrForObjectDetection"], backbone_config=None, **backbone)
    with pytest.raises(CheckpointError, match="transformers makes no DetrForObjectDetection of it"):
        inspect_checkpoint(copy)
    assert asked == []
