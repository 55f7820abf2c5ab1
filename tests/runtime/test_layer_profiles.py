from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_model

from daskinfer.errors import DaskinferError
from daskinfer.models.execution.devices import find_device
from daskinfer.runtime.snapshots.layer_profiles import find_profile, profile_checkpoint, profile_key
from daskinfer.spec.measured import CheckpointProfile
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import Model
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import request_of
from daskinfer.testing.models.ownmodels import make_own
from daskinfer.testing.models.tinymodels import make_tiny, make_tiny_bert

FEATURES = InputArray(name="features", dtype="float32", shape=(8,))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


def profile(
    folder: Path,
    checkpoint: str,
    *arrays: InputArray,
    threads: int | None = 1,
    measure: bool = True,
    fresh: bool = False,
    **model: Any,
) -> CheckpointProfile:
    return profile_checkpoint(
        Registry(str(folder / "registry")),
        Model(checkpoint=checkpoint, **model),
        arrays,
        threads=threads,
        measure=measure,
        fresh=fresh,
        watch=lambda doing, done, total: None,
    )


def test_costs_are_counted_without_the_weights(bert: Path, tmp_path: Path) -> None:
    first = profile(tmp_path, str(bert), measure=False)
    registry = Registry(str(tmp_path / "registry"))
    manifest = registry.manifest(first.resolution.snapshot)
    for group in manifest.groups:
        (tmp_path / "registry" / str(group.blob)).unlink()
    found = profile(tmp_path, str(bert), measure=False)
    assert found == first
    assert (found.per, found.rows, found.length, found.uncut) == ("token", 64, 64, None)
    sizes = {group.name: sum(tensor.end - tensor.begin for tensor in group.tensors) for group in manifest.groups}
    names = [f"encoder.layer.{number}" for number in range(4)]
    wanted = {name: sizes[name] for name in names}
    wanted["encoder.layer.0"] += sizes["embeddings"]
    assert {layer.name: layer.parameter_bytes for layer in found.layers} == wanted
    assert found.parameter_bytes == sum(wanted.values())
    assert [layer.cut_bytes for layer in found.layers] == [0, 128, 128, 128]
    assert {layer.flops for layer in found.layers[:3]} == {2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 64 * 32}


def test_times_are_stored_until_something_changes(bert: Path, tmp_path: Path) -> None:
    first = profile(tmp_path, str(bert))
    assert first.measured is not None
    assert not first.stored
    again = profile(tmp_path, f"{first.resolution.name}@v1")
    assert again.stored
    assert again.measured == first.measured
    registry = Registry(str(tmp_path / "registry"))
    request = request_of(registry, f"{first.resolution.name}@v1")
    key = profile_key(first.resolution.snapshot, request, first.measured.numerics, find_device())
    assert find_profile(registry.url, key) == first.measured
    assert find_profile(registry.url, f"sha256:{'0' * 64}") is None
    for change in ({"threads": 2}, {"dtype": "bfloat16"}, {"torch": "0"}):
        numerics = first.measured.numerics.model_copy(update=change)
        other = profile_key(first.resolution.snapshot, request, numerics, find_device())
        assert find_profile(registry.url, other) is None
    fresh = profile(tmp_path, str(bert), fresh=True)
    assert not fresh.stored
    assert fresh.measured != first.measured
    assert profile(tmp_path, str(bert)).measured == fresh.measured
    (path,) = (path for path in (tmp_path / "registry/profiles").iterdir() if path.stem == key.removeprefix("sha256:"))
    path.write_text(path.read_text()[:100])
    assert not profile(tmp_path, str(bert)).stored
    assert not list((tmp_path / "registry/locks").rglob("*.json"))


def test_rows_of_one_shape_are_counted_by_the_row(tmp_path: Path) -> None:
    model: Any = {"task": "forward", "entry": "daskinfer.testing.models.ownmodels:make_own"}
    weights = tmp_path / "weights"
    weights.mkdir()
    save_model(make_own(), str(weights / "model.safetensors"))
    found = profile(tmp_path, str(weights), FEATURES, **model)
    assert (found.per, found.rows, found.length) == ("row", 16, 1)
    assert [layer.name for layer in found.layers] == [f"body.{number}" for number in range(4)]
    # The gate crosses with the hidden state.
    assert [(len(layer.cut), layer.cut_bytes) for layer in found.layers[1:]] == [(2, 128)] * 3
    assert found.measured is not None
    assert [layer.like for layer in found.measured.layers] == [None, None, "body.1", None]
    assert [timing.rows for timing in found.measured.layers[0].timings] == [1, 4, 16]
    assert found.measured.layers[1].timings[2].flops == 16 * found.layers[1].flops


def test_a_model_without_cuts_says_why(tmp_path: Path) -> None:
    found = profile(tmp_path, str(make_tiny(tmp_path / "albert", "AlbertModel")))
    assert "no list of layers" in str(found.uncut)
    assert [layer.name for layer in found.layers] == ["AlbertModel"]
    assert found.measured is not None
    assert len(found.measured.layers) == 1


@pytest.mark.parametrize(
    ("checkpoint", "arrays", "model", "message"),
    [
        ("nosuch@prod", (), {}, "nosuch"),
        (None, (), {"task": "forward"}, "needs the model's inputs by name"),
        (None, (FEATURES,), {}, "task embed takes no inputs"),
        (None, (FEATURES,), {"task": "forward"}, "does not take features"),
        (None, (), {"task": "classify"}, "no trained sequence classifier"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    bert: Path, tmp_path: Path, checkpoint: str | None, arrays: tuple[InputArray, ...], model: Any, message: str
) -> None:
    with pytest.raises(DaskinferError, match=message) as caught:
        profile(tmp_path, checkpoint or str(bert), *arrays, measure=False, **model)
    assert caught.value.exit_code == 2
    assert caught.value.hint
