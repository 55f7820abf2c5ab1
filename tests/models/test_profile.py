from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.families import family_of, group_of
from daskinfer.models.profile import profile_model, resolve_dtype
from daskinfer.models.tasks.fields import label_names, task_fields, use_sigmoid
from daskinfer.planning.stages import make_stages
from daskinfer.spec.recipe import ModelOptions
from daskinfer.spec.snapshot import LayerGroup, Manifest, TensorEntry
from daskinfer.testing.stages import cut_checkpoint, read_blob


def make_manifest(directory: Path) -> Manifest:
    source = inspect_checkpoint(directory)
    groups = []
    for group in source.groups:
        blob = group.blob()
        tensors = tuple(
            TensorEntry(name=name, dtype=dtype, shape=shape, begin=0, end=len(data))
            for name, (dtype, shape, data) in read_blob(group.blob).items()
        )
        digest = sha256(blob).hexdigest()
        groups.append(LayerGroup(name=group.name, size=len(blob), sha256=digest, blob=group.name, tensors=tensors))
    return Manifest(model="tiny", architecture=source.architecture, dtype=source.dtype, files=(), groups=tuple(groups))


def read_config(directory: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((directory / "config.json").read_text())
    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["embed", "classify"])
def test_profile_counts_the_bytes_that_stages_hold(tiny: Callable[[str], Path], task: str, dtype: str) -> None:
    directory = tiny("BertForSequenceClassification")
    profile = profile_model(make_manifest(directory), read_config(directory), task, dtype)
    stages = cut_checkpoint(directory, [0, 1, 3], task=task, dtype=dtype)
    layers = [layer.parameter_bytes for layer in profile.layers]
    entry = sum(layer.parameter_bytes for layer in profile.entry)
    head = sum(layer.parameter_bytes for layer in profile.head)
    expected = [entry + layers[0], layers[1] + layers[2], layers[3] + head]
    assert [stage.parameter_bytes for stage in stages] == expected
    assert bool(profile.head) == (task == "classify")


def test_profile_of_a_known_layer(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertModel")
    profile = profile_model(make_manifest(directory), read_config(directory), "embed", "float32")
    weights = 4 * 32 * 32 + 2 * 32 * 64
    assert {layer.flops_per_token for layer in profile.layers} == {2 * weights}
    assert profile.layers[0].parameter_bytes == 4 * (weights + 5 * 32 + 64 + 4 * 32)
    assert (profile.hidden, profile.max_positions, profile.architecture) == (32, 64, "BertModel")
    assert [stage.groups for stage in make_stages(profile, (0, 2))] == [
        ("embeddings", "layer.0", "layer.1"),
        ("layer.2", "layer.3"),
    ]


def test_head_groups_belong_to_the_last_stage(tiny: Callable[[str], Path]) -> None:
    directory = tiny("DistilBertForSequenceClassification")
    profile = profile_model(make_manifest(directory), read_config(directory), "classify", "float32")
    assert [stage.groups for stage in make_stages(profile, (0, 3))] == [
        ("embeddings", "layer.0", "layer.1", "layer.2"),
        ("layer.3", "pre_classifier", "classifier"),
    ]


def test_positions_of_roberta_are_offset(tiny: Callable[[str], Path]) -> None:
    config = read_config(tiny("RobertaModel"))
    assert family_of(config).max_positions(config) == 64


def test_group_names() -> None:
    electra = family_of({"model_type": "electra"})
    assert group_of(electra, "electra.embeddings_project.weight") == "embeddings"
    assert group_of(electra, "electra.encoder.layer.11.output.dense.bias") == "layer.11"
    assert group_of(electra, "classifier.out_proj.weight") == "classifier"


def test_a_missing_head_is_refused(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertModel")
    with pytest.raises(CheckpointError, match="needed to classify"):
        profile_model(make_manifest(directory), read_config(directory), "classify", "float32")


def test_auto_takes_the_stored_precision(tiny: Callable[[str], Path]) -> None:
    manifest = make_manifest(tiny("BertModel"))
    assert resolve_dtype("auto", manifest.model_copy(update={"dtype": "bfloat16"})) == "bfloat16"
    assert resolve_dtype("auto", manifest.model_copy(update={"dtype": "float64"})) == "float32"
    assert resolve_dtype("float16", manifest) == "float16"


def test_fields(tiny: Callable[[str], Path]) -> None:
    config = read_config(tiny("RobertaForSequenceClassification"))
    assert [(field.name, field.kind, field.shape) for field in task_fields("embed", config, ModelOptions())] == [
        ("embedding", "float32", (32,))
    ]
    assert [(field.name, field.kind, field.shape) for field in task_fields("classify", config, ModelOptions())] == [
        ("label", "string", ()),
        ("score", "float32", ()),
        ("scores", "float32", (3,)),
    ]


CLASSIFIER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}


def test_labels_and_activation() -> None:
    assert label_names(CLASSIFIER) == ("LABEL_0", "LABEL_1")
    assert label_names(CLASSIFIER | {"id2label": {"1": "b", "0": "a", "2": "c"}}) == ("a", "b", "c")
    assert not use_sigmoid(CLASSIFIER)
    assert use_sigmoid(CLASSIFIER | {"problem_type": "multi_label_classification"})
    assert use_sigmoid(CLASSIFIER | {"id2label": {"0": "toxic"}})


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (CLASSIFIER | {"problem_type": "regression"}, "classify", "regression"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "classify", "BertModel cannot classify"),
        (CLASSIFIER, "generate", "'generate' is not supported"),
    ],
)
def test_impossible_tasks_are_refused(config: dict[str, object], task: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        task_fields(task, config, ModelOptions())


def test_what_the_driver_imports_loads_no_torch() -> None:
    modules = "checkpoint, families, profile, tasks, tokenizer, versions"
    script = (
        f"import sys; from daskinfer.models import {modules}; print(sorted(versions.versions()));"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['tokenizers', 'torch', 'transformers']\n"), done.stderr
