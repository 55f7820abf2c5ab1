from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.spec.registry.upkeep import Difference
from daskinfer.storage.registry import differences
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.differences import compare
from daskinfer.storage.registry.publishing.publish import GroupSource, publish
from daskinfer.storage.registry.yanking import yank
from daskinfer.testing.fixtures.checkpoints import make_checkpoint, make_registry

Tensors = dict[str, NDArray[Any]]


def publish_tensors(registry: Registry, **groups: Tensors) -> str:
    sources = [GroupSource(name, lambda tensors=tensors: save(tensors)) for name, tensors in groups.items()]  # type: ignore[misc]
    return publish(registry, "mini", replace(make_checkpoint(), groups=sources)).snapshot


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_ELEMENTS", 7)


def test_the_same_checkpoint_reads_nothing(any_store: str) -> None:
    registry = make_registry(any_store, versions=1)
    found = compare(registry, "mini@v1", "mini@prod")
    assert (found.files.same, found.groups.same, found.tensors.same, found.read) == (2, 3, 6, 0)
    assert (found.changes, found.facts) == ((), {})


def test_what_was_added_removed_and_changed(any_store: str) -> None:
    registry = Registry(any_store)
    random = np.random.default_rng(0)
    one = {"w": random.standard_normal((5, 5), dtype=np.float32), "b": np.zeros(3, np.float32)}
    other = {"w": one["w"] + np.float32(0.5), "b": one["b"], "new": np.ones(1, np.float32)}
    publish_tensors(registry, embeddings=one, old=one)
    second = replace(
        make_checkpoint(1),
        architecture="Other",
        groups=[GroupSource("embeddings", lambda: save(other)), GroupSource("head", lambda: save(one))],
        files={"config.json": b"{}", "vocab.txt": make_checkpoint().files["vocab.txt"], "extra.json": b"{}"},
    )
    publish(registry, "mini", second)
    yank(registry, "mini", "v1")
    told: list[tuple[str, int, int]] = []
    found = compare(registry, "mini@v1", "mini@v2", lambda *numbers: told.append(numbers))
    assert found.facts == {"architecture": ("TestModel", "Other")}
    assert (found.files.added, found.files.removed, found.files.changed) == (("extra.json",), (), ("config.json",))
    assert (found.groups.added, found.groups.removed, found.groups.changed) == (("head",), ("old",), ("embeddings",))
    assert found.tensors.added == ("embeddings/new", "head/b", "head/w")
    assert found.tensors.removed == ("old/b", "old/w")
    assert (found.tensors.changed, found.tensors.same) == (("embeddings/w",), 1)
    (change,) = found.changes
    expected = np.abs(other["w"].astype(np.float64) - one["w"].astype(np.float64))
    assert (change.elements, change.changed, change.not_finite) == (25, 25, 0)
    assert change.greatest == expected.max()
    assert change.mean == pytest.approx(expected.mean(), rel=1e-12)
    relative = np.linalg.norm(expected) / np.linalg.norm(one["w"].astype(np.float64))
    assert change.relative == pytest.approx(relative, rel=1e-12)
    assert found.read == 2 * 100 and told[-1] == ("comparing", 200, 200)


def measure(folder: Path, before: NDArray[Any], after: NDArray[Any]) -> Difference:
    registry = Registry(str(folder))
    publish_tensors(registry, layer={"x": before})
    publish_tensors(registry, layer={"x": after})
    return compare(registry, "mini@v1", "mini@v2")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_of_every_precision(tmp_path: Path, dtype: type) -> None:
    before: NDArray[Any] = np.arange(1, 31).astype(dtype)
    after = before.copy()
    after[[3, 20]] = np.array([8, 21.5]).astype(dtype)
    (change,) = measure(tmp_path, before, after).changes
    assert (change.elements, change.changed, change.greatest) == (30, 2, 4.0)
    assert change.mean == pytest.approx(4.5 / 30)
    assert change.relative == pytest.approx((4**2 + 0.5**2) ** 0.5 / np.linalg.norm(np.arange(1, 31)))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.uint8, np.bool_])
def test_integers_exactly(tmp_path: Path, dtype: Any) -> None:
    limits = (False, True) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    before = np.array([limits[0], limits[1], limits[1]] * 5, dtype)
    after = np.array([limits[1], limits[0], limits[1]] * 5, dtype)
    (change,) = measure(tmp_path, before, after).changes
    span = int(limits[1]) - int(limits[0])
    assert isinstance(change.greatest, int)
    assert (change.elements, change.changed, change.greatest) == (15, 10, span)
    assert change.mean == 10 * span / 15


def test_what_a_conversion_costs(tmp_path: Path) -> None:
    before = np.random.default_rng(1).standard_normal((4, 9), dtype=np.float32)
    after = before.astype(ml_dtypes.bfloat16)
    (change,) = measure(tmp_path, before, after).changes
    assert (change.before.dtype, change.after.dtype) == ("F32", "BF16")
    assert change.greatest == np.abs(after.astype(np.float64) - before.astype(np.float64)).max()


def test_other_shapes_are_told_and_not_read(tmp_path: Path) -> None:
    found = measure(tmp_path, np.zeros((2, 3), np.float32), np.zeros((3, 2, 1), np.float32))
    (change,) = found.changes
    assert (change.before.shape, change.after.shape, change.elements, found.read) == ((2, 3), (3, 2, 1), None, 0)


def test_what_is_not_finite_is_counted_apart(tmp_path: Path) -> None:
    before = np.array([1, np.nan, np.inf, np.nan, 2], np.float32)
    after = np.array([1, np.nan, 3, 4, 2.5], np.float32)
    (change,) = measure(tmp_path, before, after).changes
    assert (change.changed, change.not_finite, change.greatest, change.mean) == (3, 2, 0.5, 0.5 / 3)
    assert change.relative == pytest.approx(0.5 / 5**0.5)
    zeros = measure(tmp_path / "zeros", np.zeros(2, np.float32), np.ones(2, np.float32)).changes[0]
    assert (zeros.relative, zeros.greatest) == (None, 1.0)


def test_damage_is_no_difference(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=2)
    blob = tmp_path / str(registry.manifest(registry.resolve("mini@v2").snapshot).groups[1].blob)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptBlob, match=r"layer.0.*damaged"):
        compare(registry, "mini@v1", "mini@v2")
    blob.unlink()
    with pytest.raises(CorruptBlob, match=r"layer.0.*gone"):
        compare(registry, "mini@v1", "mini@v2")
    with pytest.raises(CheckpointError, match="no version v9"):
        compare(registry, "mini@v1", "mini@v9")
