"""Code that comes with a checkpoint: run only where it is trusted, and only the bytes of the snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from daskinfer import api
from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.models.architecture import build_model
from daskinfer.models.proofs.outlines import outline_key
from daskinfer.models.request import make_request
from daskinfer.models.tasks.kinds import is_image_model
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint, resolve_checkpoint
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import CheckpointSource, GroupSource, publish
from daskinfer.testing.fixtures.stages import Array, cut_checkpoint, request_of, run_through
from daskinfer.testing.models.codedmodels import CODE, copying_to, make_coded
from daskinfer.testing.models.reference import run_unsplit

SUM = "self.out(torch.tanh(self.mix(hidden) + mean))"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "work/registry"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_coded(tmp_path / "coded")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where transformers puts the code that it runs."""
    with copying_to(tmp_path_factory.mktemp("modules")) as folder:
        yield folder


def make_batch(lengths: list[int]) -> dict[str, Array]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(7).integers(5, 60, mask.shape)
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask.astype(np.int64)}


BATCHES = [make_batch([12, 9, 3]), make_batch([7, 7])]


def recipe_of(tmp_path: Path, checkpoint: str, **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": "coded",
            "workspace": str(tmp_path / "work"),
            "model": {"checkpoint": checkpoint, **model},
            "input": {"url": "rows.jsonl"},
            "output": {"url": "out.zarr"},
        }
    )


def edit_code(directory: Path, file: str, old: str, new: str) -> None:
    text = (directory / file).read_text()
    assert old in text
    (directory / file).write_text(text.replace(old, new))


def edit_map(directory: Path, **entries: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] |= entries
    (directory / "config.json").write_text(json.dumps(config))


def leave_a_trace(directory: Path) -> Path:
    """Make every file of code create a file when it is run."""
    trace = directory.parent / "trace"
    for path in directory.glob("*.py"):
        path.write_text(f"open({str(trace)!r}, 'w').close()\n{path.read_text()}")
    return trace


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_stages_equal_the_plain_model(registry: Registry, directory: Path, copies: Path, task: str) -> None:
    before = sorted(copies.rglob("*"))
    snapshot = publish_checkpoint(registry, "coded", str(directory), trust_code=True).snapshot
    manifest = registry.manifest(snapshot)
    assert manifest.architecture == "TinyForSequenceClassification"
    assert manifest.code == tuple(sorted(CODE)) and manifest.provenance["code"] == ", ".join(sorted(CODE))
    found = {}
    for stages in (1, 2, 3):
        outline, loaded = cut_checkpoint(registry, "coded", request_of(registry, "coded", task), stages)
        assert len(outline.layers) >= 4
        found[stages] = [run_through(loaded, batch) for batch in BATCHES]
    assert sorted(copies.rglob("*")) == before
    expected = run_unsplit(directory, BATCHES, task=task, trust_code=True)
    assert list(copies.rglob("modeling_tiny.py"))
    for results in found.values():
        for result, wanted in zip(results, expected, strict=True):
            if task == "embed":
                assert np.array_equal(result["embedding"], wanted)
            else:
                assert np.array_equal(result["scores"], torch.softmax(torch.from_numpy(wanted), -1).numpy())


@pytest.mark.usefixtures("copies")
def test_other_code_is_another_snapshot_and_runs_beside_the_first(registry: Registry, directory: Path) -> None:
    first = publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    assert publish_checkpoint(registry, "coded", str(directory), trust_code=True) == first
    edit_code(directory, "blocks_tiny.py", SUM, SUM.replace("tanh", "sigmoid"))
    # For a configuration class that it has seen, transformers goes on with the model class that it had for it.
    edit_code(directory, "configuration_tiny.py", "class TinyConfig", "# another\nclass TinyConfig")
    second = publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    assert second.snapshot != first.snapshot
    (wanted,) = run_unsplit(directory, BATCHES[:1], trust_code=True)
    results, keys = [], set()
    for version in ("coded@v2", "coded@v1"):
        request = request_of(registry, version)
        keys.add(outline_key(request, "float32"))
        results.append(run_through(cut_checkpoint(registry, version, request, 2)[1], BATCHES[0])["embedding"])
    assert len(keys) == 2
    assert np.array_equal(results[0], wanted)
    assert not np.allclose(results[1], wanted)


def test_what_is_not_trusted_is_not_run(registry: Registry, directory: Path, tmp_path: Path) -> None:
    trace = leave_a_trace(directory)
    recipe = recipe_of(tmp_path, str(directory))
    attempts: list[Callable[[], object]] = [
        lambda: publish_checkpoint(registry, "coded", str(directory)),
        lambda: resolve_checkpoint(recipe),
    ]
    for attempt in attempts:
        with pytest.raises(CheckpointError, match="code of its own, which is not run") as refusal:
            attempt()
        assert all(word in str(refusal.value) for word in ("--trust-code", "model.trust_code: true", "--entry"))
    assert not trace.exists() and registry.names() == []
    resolution = resolve_checkpoint(recipe_of(tmp_path, str(directory), trust_code=True))
    assert trace.exists()
    trace.unlink()
    manifest = registry.manifest(resolution.snapshot)
    # The folder was published before, so it is found; its code still wants the recipe's permission.
    assert resolve_checkpoint(recipe) == resolution
    attempts = [
        lambda: make_request(recipe.model, manifest, {}, ()),
        lambda: api.profile("coded@v1", registry=registry.url, measure=False),
        lambda: publish_checkpoint(registry, "copy", "coded@v1"),
        lambda: publish_checkpoint(registry, "copy", "coded@v1", dtype="bfloat16"),
    ]
    for attempt in attempts:
        with pytest.raises(CheckpointError, match=r"blocks_tiny\.py, .*modeling_tiny\.py") as refusal:
            attempt()
        assert "model.trust_code: true" in str(refusal.value) and "coded" in str(refusal.value)
    assert not trace.exists() and registry.names() == ["coded"]
    assert api.profile("coded@v1", registry=registry.url, measure=False, trust_code=True).layers


def test_no_model_of_transformers_stands_in(registry: Registry, directory: Path) -> None:
    edit_code(directory, "modeling_tiny.py", "TinyConfig", "BertConfig")
    edit_code(directory, "configuration_tiny.py", "TinyConfig", "BertConfig")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] |= {"AutoConfig": "configuration_tiny.BertConfig"}
    del config["auto_map"]["AutoModel"]
    (directory / "config.json").write_text(json.dumps(config))
    publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    with pytest.raises(CheckpointError, match="auto_map has no AutoModel, only"):
        cut_checkpoint(registry, "coded", request_of(registry, "coded"))


def test_damaged_code_is_not_run(registry: Registry, directory: Path) -> None:
    manifest = registry.manifest(publish_checkpoint(registry, "coded", str(directory), trust_code=True).snapshot)
    (piece,) = [piece for piece in manifest.files if piece.path == "modeling_tiny.py"]
    (Path(registry.url) / piece.blob).write_text("raise SystemExit")
    with pytest.raises(CorruptBlob, match=r"modeling_tiny\.py of coded is damaged"):
        request_of(registry, "coded")


def test_another_precision_keeps_the_code(registry: Registry, directory: Path) -> None:
    publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    converted = publish_checkpoint(registry, "coded", "coded@v1", dtype="bfloat16", trust_code=True)
    manifest = registry.manifest(converted.snapshot)
    assert manifest.dtype == "bfloat16" and manifest.code == tuple(sorted(CODE))


def test_a_registry_takes_no_code_unasked(registry: Registry) -> None:
    group = GroupSource("embeddings", lambda: save({"embeddings.weight": np.ones((2, 2), np.float32)}))
    source = CheckpointSource("Some", "float32", {"config.json": b"{}", "modeling.py": b"1"}, [group])
    with pytest.raises(CheckpointError, match=r"'modeling\.py' cannot be published"):
        publish(registry, "some", source)
    assert registry.names() == []
    found = publish(registry, "some", replace(source, trust_code=True))
    assert registry.manifest(found.snapshot).code == ("modeling.py",)


def test_trust_changes_nothing_where_there_is_no_code(registry: Registry, tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertModel")
    first = publish_checkpoint(registry, "plain", str(directory))
    assert publish_checkpoint(registry, "plain", str(directory), trust_code=True) == first
    assert registry.manifest(first.snapshot).code == ()


def test_code_decides_nothing_about_images(registry: Registry, directory: Path) -> None:
    publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    request = request_of(registry, "coded")
    assert not is_image_model(request.config, request.files)
    with pytest.raises(CheckpointError, match="'daskinfer-tiny' is not known to transformers"):
        build_model(request.config, "AutoModel")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: edit_map(path, AutoModel="owner/repo--modeling_tiny.TinyModel"),
            "AutoModel from another repository: owner/repo--modeling_tiny.TinyModel; nothing is ever downloaded",
        ),
        (lambda path: edit_map(path, AutoModel="modeling_lost.TinyModel"), "no such file"),
        (lambda path: edit_map(path, AutoModel="../modeling_tiny.TinyModel"), "no such file"),
        (lambda path: edit_map(path, AutoModel=["modeling_tiny.TinyModel"]), "no such file"),
        (
            lambda path: edit_map(path, AutoConfig="configuration_tiny.Lost"),
            r"configuration_tiny\.py has no such class",
        ),
        (lambda path: edit_map(path, AutoConfig="blocks_tiny.Block"), "Block is no PreTrainedConfig"),
        (
            lambda path: edit_map(path, AutoModelForSequenceClassification="blocks_tiny.Block"),
            "auto_map has no TinyForSequenceClassification, only AutoConfig, AutoModel,",
        ),
        (lambda path: (path / "blocks_tiny.py").unlink(), "needs the module blocks_tiny, which is not installed"),
        (
            lambda path: edit_code(path, "blocks_tiny.py", "import torch\n", "import torch, nowhere_to_be_found\n"),
            "needs the module nowhere_to_be_found, which is not installed",
        ),
        (
            lambda path: edit_code(path, "modeling_tiny.py", "import PreTrainedModel", "import PreTrainedPoem"),
            r"modeling_tiny\.py of the checkpoint cannot be imported: ImportError: .*PreTrainedPoem",
        ),
        (lambda path: (path / "modeling_tiny.py").write_text("def"), "cannot be imported: SyntaxError"),
        (
            lambda path: edit_code(path, "blocks_tiny.py", "super().__init__()", "raise ValueError('odd')"),
            "makes no TinyForSequenceClassification of it: odd",
        ),
        (
            lambda path: edit_code(path, "modeling_tiny.py", "range(config.layers)", "range(5)"),
            r"missing tensor blocks\.4\.",
        ),
    ],
)
def test_code_that_cannot_be_used_is_refused(
    registry: Registry, directory: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(directory)
    with pytest.raises(CheckpointError, match=message):
        publish_checkpoint(registry, "coded", str(directory), trust_code=True)
    assert registry.names() == []
