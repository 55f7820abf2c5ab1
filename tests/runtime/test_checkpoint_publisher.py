from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from fsspec import filesystem

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.runtime.snapshots.checkpoint_publisher import name_after, publish_checkpoint, resolve_checkpoint
from daskinfer.spec.recipe.schema import Input, Model, Output, Recipe
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.sources import identify_source, recall_source
from daskinfer.storage.tensors.folder import Folder
from daskinfer.testing.models.tinymodels import make_tiny_bert

ENTRY = """
import torch
from torch import nn

def build():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
"""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "work" / "registry"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_tiny_bert(tmp_path / "tiny", layers=2, hidden=16)


def read_tensors(registry: Registry, manifest: Manifest) -> dict[str, bytes]:
    """The bytes of every tensor, wherever they lie, as their digests say they are."""
    found = {}
    for group in manifest.groups:
        for entry in group.tensors:
            url = entry.file or join_url(registry.url, str(group.blob))
            found[entry.name] = read_bytes(url, entry.begin, entry.end)
            assert blake3(found[entry.name]).hexdigest() == entry.blake3
    return found


def count_blobs(registry: Registry) -> int:
    return sum(path.is_file() for path in (Path(registry.url) / "blobs").rglob("*"))


def test_a_copy_and_a_reference_are_the_same_content(registry: Registry, directory: Path, tmp_path: Path) -> None:
    copy = registry.manifest(publish_checkpoint(registry, "copy", str(directory)).snapshot)
    other = Registry(str(tmp_path / "other"))
    reference = other.manifest(publish_checkpoint(other, "there", str(directory), reference=True).snapshot)
    assert reference.digest == copy.digest
    assert read_tensors(other, reference) == read_tensors(registry, copy)
    assert {group.blob for group in reference.groups} == {None}
    assert {entry.file for group in reference.groups for entry in group.tensors} == {
        str(directory / "model.safetensors")
    }
    assert count_blobs(other) == len(reference.files)
    assert reference.provenance["reference"].startswith(f"{len(reference.groups)} of {len(reference.groups)} ")
    joined = publish_checkpoint(registry, "there", str(directory), reference=True)
    assert (joined.snapshot, joined.version) == (copy.digest, 1)


@pytest.mark.parametrize("store", ["memory", pytest.param("s3", marks=pytest.mark.s3)])
def test_any_store_publishes_what_the_directory_does(
    store: str, registry: Registry, directory: Path, request: pytest.FixtureRequest
) -> None:
    url = f"{'memory:/' if store == 'memory' else request.getfixturevalue('s3_url')}/tiny-{store}"
    filesystem(store).put(f"{directory}/", url, recursive=True)
    expected = registry.manifest(publish_checkpoint(registry, "tiny", str(directory)).snapshot)
    assert publish_checkpoint(registry, "tiny", url).snapshot == expected.digest
    for reference in (False, True):
        manifest = registry.manifest(publish_checkpoint(registry, "far", url, reference=reference).snapshot)
        assert manifest.content == expected.content
        assert read_tensors(registry, manifest) == read_tensors(registry, expected)
        known = recall_source(registry, identify_source("far", Folder(url), None, None))
        assert known is not None and known.snapshot == manifest.digest


def test_a_conversion_names_its_parent(registry: Registry, directory: Path) -> None:
    parent = publish_checkpoint(registry, "tiny", str(directory), alias="prod")
    child = publish_checkpoint(registry, "tiny", str(directory), dtype="bfloat16")
    manifest = registry.manifest(child.snapshot)
    assert (child.version, manifest.parent, manifest.dtype) == (2, parent.snapshot, "bfloat16")
    again = publish_checkpoint(registry, "small", "tiny@prod", dtype="bfloat16")
    other = registry.manifest(again.snapshot)
    assert (other.parent, other.content) == (parent.snapshot, manifest.content)
    orphan = publish_checkpoint(registry, "fresh", str(directory), dtype="float16")
    assert registry.manifest(orphan.snapshot).parent is None
    assert list((Path(registry.url) / "locks").rglob("*.json")) == []


def test_damaged_blobs_are_not_converted(registry: Registry, directory: Path) -> None:
    snapshot = publish_checkpoint(registry, "tiny", str(directory)).snapshot
    blob = Path(registry.url) / str(registry.manifest(snapshot).groups[1].blob)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptBlob, match="not those that were published"):
        publish_checkpoint(registry, "tiny", "tiny@v1", dtype="bfloat16")
    assert len(registry.versions("tiny")) == 1


def make_recipe(tmp_path: Path, checkpoint: str, entry: str | None = None) -> Recipe:
    return Recipe(
        daskinfer=1,
        name="one",
        workspace=str(tmp_path / "work"),
        model=Model(checkpoint=checkpoint, entry=entry),
        input=Input(url="rows.jsonl"),
        output=Output(url="out.jsonl"),
    )


def test_an_unchanged_directory_is_not_looked_into_again(
    registry: Registry, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, str(directory))
    first = resolve_checkpoint(recipe)
    script = (
        "import sys; from daskinfer.runtime.snapshots.checkpoint_publisher import resolve_checkpoint; "
        "from daskinfer.spec.recipe.schema import Recipe; "
        "found = resolve_checkpoint(Recipe.model_validate_json(sys.argv[1])); "
        "print(found.snapshot, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, recipe.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [first.snapshot, "False"]
    make_tiny_bert(directory, layers=2, hidden=16, seed=1)
    second = resolve_checkpoint(recipe)
    assert (second.version, second.snapshot == first.snapshot) == (2, False)
    registry.life_log(second.snapshot).append({"op": "condemn"})
    assert resolve_checkpoint(recipe).version == 3


def test_a_recipe_with_an_entry(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    (tmp_path / "mine_of_recipe.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    published = publish_checkpoint(registry, "mine", entry="mine_of_recipe:build")
    manifest = registry.manifest(published.snapshot)
    assert manifest.entry is not None and manifest.entry.function == "mine_of_recipe:build"
    assert publish_checkpoint(registry, "mine", entry="mine_of_recipe:build") == published
    with pytest.raises(CheckpointError, match="missing tensor"):
        resolve_checkpoint(make_recipe(tmp_path, str(directory), "mine_of_recipe:build"))


@pytest.mark.parametrize(
    ("publish", "message"),
    [
        (lambda registry: publish_checkpoint(registry, "x"), "nothing to publish"),
        (lambda registry: publish_checkpoint(registry, "x", "no-such-directory"), "no such directory"),
        (lambda registry: publish_checkpoint(registry, "x", "minilm@v1"), "no checkpoint is named"),
        (lambda registry: publish_checkpoint(registry, "x", "minilm@v1", reference=True), "is a published checkpoint"),
        (lambda registry: publish_checkpoint(registry, "x", "memory://nowhere"), "no such directory"),
    ],
)
def test_what_cannot_be_published(registry: Registry, publish: Callable[[Registry], object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        publish(registry)
    assert registry.names() == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("minilm", "minilm"),
        ("my model", "my-model"),
        ("m [1]::~x", "m-1-x"),
        (".hidden", "hidden"),
        ("\u6a21\u578b", "checkpoint"),
        ("x" * 200, "x" * 100),
    ],
)
def test_a_folder_of_any_name_can_be_published(folder: str, name: str) -> None:
    assert name_after(f"/models/{folder}") == name
