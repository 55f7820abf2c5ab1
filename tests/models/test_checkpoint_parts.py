"""Checkpoints that lack a part of their class, or name a class that transformers does not have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from daskinfer.errors import CheckpointError, DaskinferError
from daskinfer.models.architecture import make_config, read_settings
from daskinfer.models.checkpoints.checkpoint import inspect_checkpoint
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.outlining import make_outline
from daskinfer.models.tasks.build import build_task
from daskinfer.planning.profile import make_profile
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.spec.outline import InputArray, Outline
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.zoo import ZOO

IDS = (
    InputArray(name="input_ids", dtype="int64", shape=(12,), bound=60),
    InputArray(name="attention_mask", dtype="int64", shape=(12,), bound=2),
)


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("BertForSequenceClassification"), tmp_path / "checkpoint"))


def drop_tensors(directory: Path, *parts: str) -> None:
    file = directory / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not any(part in name for part in parts)}
    save_file(kept, file, {"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


OUTLINES: dict[tuple[Any, ...], Outline] = {}


def plan(
    manifest: Manifest,
    files: dict[str, bytes],
    task: str,
    arrays: tuple[InputArray, ...] = IDS,
    pooling: Literal["auto", "cls"] = "auto",
) -> None:
    """Do what a job does before it begins: outline the task, and look whether its tensors are there."""
    request = TaskRequest(
        task, ModelOptions(pooling=pooling), manifest.architecture, files, arrays=arrays if task == "forward" else ()
    )
    key = (task, pooling, manifest.architecture, files["config.json"])
    if key not in OUTLINES:  # what is missing does not change it
        module = build_task(request, "float32")
        OUTLINES[key] = make_outline(module, module.inputs, task=task, dtype="float32")
    make_profile(manifest, OUTLINES[key], max_length=None)


def publish(directory: Path, tmp_path: Path) -> tuple[Manifest, dict[str, bytes]]:
    registry = Registry(str(tmp_path / "registry"))
    manifest = registry.manifest(publish_checkpoint(registry, "it", str(directory)).snapshot)
    return manifest, {piece.path: registry.file(manifest, piece.path) for piece in manifest.files}


@pytest.mark.parametrize(
    ("parts", "able", "unable"),
    [
        ((), {"embed", "classify", "forward"}, {}),
        (("pooler",), {"embed"}, {"classify": "pooler", "forward": "pooler"}),
        (("classifier",), {"embed"}, {"classify": "classifier", "forward": "classifier"}),
    ],
)
def test_a_task_is_done_where_its_parts_are_there_and_refused_where_not(
    copy: Path, tmp_path: Path, parts: tuple[str, ...], able: set[str], unable: dict[str, str]
) -> None:
    if parts:
        drop_tensors(copy, *parts)
    manifest, files = publish(copy, tmp_path)
    missing = {"pooler": "pooler.dense.weight, pooler.dense.bias", "classifier": "classifier.weight, classifier.bias"}
    assert manifest.provenance.get("missing", "") == "".join(missing[part] for part in parts)
    for task in able:
        plan(manifest, files, task)
    for task, lacking in unable.items():
        with pytest.raises(CheckpointError, match=rf"has no tensor {lacking}.*needed to {task}"):
            plan(manifest, files, task)


def test_a_conversion_still_says_what_is_missing(copy: Path, tmp_path: Path) -> None:
    drop_tensors(copy, "pooler")
    registry = Registry(str(tmp_path / "registry"))
    publish_checkpoint(registry, "it", str(copy))
    half = publish_checkpoint(registry, "it", "it@v1", dtype="bfloat16")
    assert registry.manifest(half.snapshot).provenance["missing"] == "pooler.dense.weight, pooler.dense.bias"


def test_the_decoder_of_an_encoder_decoder_is_not_needed_to_embed(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    drop_tensors(tmp_path / "t5", "decoder.")
    manifest, files = publish(tmp_path / "t5", tmp_path)
    assert "decoder.block.1.layer.2.DenseReluDense.wi.weight" in manifest.provenance["missing"].split(", ")
    plan(manifest, files, "embed")
    with pytest.raises(CheckpointError, match=r"has no tensor decoder\..*needed to forward"):
        plan(manifest, files, "forward", (IDS[0], IDS[0].model_copy(update={"name": "decoder_input_ids"})))
    drop_tensors(tmp_path / "t5", "encoder.block.1")
    with pytest.raises(CheckpointError, match=r"missing tensor encoder\.block\.1\."):
        inspect_checkpoint(tmp_path / "t5")


def test_images_are_embedded_without_a_pooler_by_another_pooling(tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**options, intermediate_size=32, image_size=16, patch_size=8)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    manifest, files = publish(tmp_path / "vit", tmp_path)
    assert manifest.provenance["missing"] == "pooler.dense.weight, pooler.dense.bias"
    plan(manifest, files, "embed", pooling="cls")
    with pytest.raises(CheckpointError, match=r"has no tensor pooler.*needed to embed"):
        plan(manifest, files, "embed")


@pytest.mark.parametrize(
    "names", [["BertForMyRetrieval"], ["bertmodel"], ["BertForMyRetrieval", "Other"], ["BertConfig"]]
)
def test_a_class_that_transformers_lacks_is_published_as_its_base_model(
    copy: Path, tmp_path: Path, names: list[str]
) -> None:
    edit_config(copy, architectures=names)
    manifest, files = publish(copy, tmp_path)
    assert manifest.architecture == "BertModel"
    assert manifest.provenance["class"] == f"the base model: transformers has no class {', '.join(names)}"
    assert manifest.provenance["dropped"] == "classifier.bias, classifier.weight"
    plan(manifest, files, "embed")
    for task, message in {
        "classify": "cannot classify",
        "score": "cannot score",
        "forward": "its own forward is not",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            plan(manifest, files, task)


@pytest.mark.parametrize("names", [None, [], ...])
def test_without_a_class_it_is_the_base_model(copy: Path, tmp_path: Path, names: Any) -> None:
    edit_config(copy, architectures=names)
    manifest, files = publish(copy, tmp_path)
    assert manifest.architecture == "BertModel" and "class" not in manifest.provenance
    plan(manifest, files, "forward")


def test_the_first_class_that_transformers_has_is_taken(copy: Path) -> None:
    edit_config(copy, architectures=["BertForMyRetrieval", "BertForSequenceClassification"])
    assert inspect_checkpoint(copy).architecture == "BertForSequenceClassification"


def test_a_class_of_another_model_type_gives_way_to_that_of_its_own(tmp_path: Path) -> None:
    config = transformers.CamembertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64
    )
    transformers.CamembertForMaskedLM(config).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["RobertaForMaskedLM"])
    found = inspect_checkpoint(tmp_path)
    assert found.architecture == "CamembertForMaskedLM" and "RobertaForMaskedLM" in found.provenance["class"]


def test_a_model_type_that_was_not_written_follows_from_the_class(copy: Path) -> None:
    wanted = inspect_checkpoint(copy)
    edit_config(copy, model_type=...)
    found = inspect_checkpoint(copy)
    assert [group.blob() for group in found.groups] == [group.blob() for group in wanted.groups]


@pytest.mark.parametrize("case", [case for case in ZOO if case.config is not None], ids=lambda case: str(case.name))
def test_a_configuration_is_read_as_transformers_reads_it(case: Any, tmp_path: Path) -> None:
    make_config(case.config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    wanted = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read_settings(content).to_dict() == wanted.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mamba2", {"time_step_limit": (0.0, float("inf"))}),
        ("mamba2", {"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
        ("mamba2", {"time_step_limit": [{"__float__": "-Infinity"}, 5.0]}),
        ("llama", {"torch_dtype": "bfloat16"}),
        ("llama", {"dtype": "float16"}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_theta": 5000.0}),
        ("mistral", {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}),
        ("bert", {"task_specific_params": {"a": {"b": 1}}, "id2label": {"0": "no", "1": "yes"}}),
        ("clip", {"text_config": {"dtype": "bfloat16"}, "vision_config": {"torch_dtype": "float16"}}),
    ],
)
def test_odd_values_of_a_configuration_are_kept(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    content = {"model_type": kind, "architectures": None, **changes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    wanted = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read_settings(content).to_dict() == wanted.to_dict() | {"_name_or_path": ""}
    if "time_step_limit" in changes:
        assert all(isinstance(value, float) for value in make_config(content).time_step_limit)


def test_a_configuration_in_files_by_version_is_refused(copy: Path) -> None:
    edit_config(copy, configuration_files=["config.4.0.0.json"])
    with pytest.raises(CheckpointError, match="configuration_files names other files"):
        inspect_checkpoint(copy)


def test_what_has_no_task_left_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for part in ("model.norm.weight", "model.embed_tokens.weight"):
        save_file({name: value for name, value in weights.items() if name != part}, tmp_path / "model.safetensors")
        with pytest.raises(DaskinferError, match=f"missing tensor {part.removeprefix('model.')}"):
            inspect_checkpoint(tmp_path)
    save_file(
        {name: value for name, value in weights.items() if name != "lm_head.weight"}, tmp_path / "model.safetensors"
    )
    assert inspect_checkpoint(tmp_path).missing == ("lm_head.weight",)
    assert torch.is_tensor(weights["lm_head.weight"])
