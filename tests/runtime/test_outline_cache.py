from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.errors import CheckpointError
from daskinfer.ids import sha256_of
from daskinfer.models.execution.stage import load_stage
from daskinfer.models.proofs import outlines
from daskinfer.models.proofs.outlines import outline_key, trace_apart
from daskinfer.models.request import TaskRequest
from daskinfer.models.versions import versions
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.spec.kernels import LinearKernels
from daskinfer.spec.outline import Outline
from daskinfer.spec.plan import Numerics, StagePlan
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import request_of
from daskinfer.testing.models.tinymodels import make_tiny

Seen = tuple[Registry, TaskRequest]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "cache"))
    registry = Registry(str(tmp_path / "registry"))
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", "BertModel")))
    return registry, request_of(registry, "tiny")


def refuse_to_trace(request: TaskRequest, dtype: str) -> Outline:
    raise AssertionError("traced again")


def test_a_model_is_traced_once_on_a_machine(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, request = seen
    first = find_outline(registry.url, request, "float32")
    with monkeypatch.context() as patch:
        patch.setattr("daskinfer.runtime.snapshots.outline_cache.trace_apart", refuse_to_trace)
        assert find_outline(registry.url, request, "float32") == first
        assert find_outline(str(tmp_path / "another registry"), request, "float32") == first
        patch.setenv("DASKINFER_CACHE", str(tmp_path / "another machine"))
        with pytest.raises(AssertionError, match="traced again"):
            find_outline(registry.url, request, "float32")


def forge(file: Path, **changes: Any) -> None:
    """Change the first layer that can be cut before, so that the file still has the digest of its content."""
    outline = json.loads(file.read_bytes().partition(b"\n")[2])
    outline["layers"][1] |= changes
    text = json.dumps(outline).encode()
    file.write_bytes(f"{sha256_of(text)}\n".encode() + text)


@pytest.mark.parametrize("changes", [{"units": []}, {"cut": []}, {"tensors": []}, {"begin": 0}])
def test_an_outline_that_a_stranger_wrote_is_not_used(
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
) -> None:
    registry, request = seen
    first = find_outline(registry.url, request, "float32")
    (file,) = tmp_path.glob("registry/outlines/*")
    forge(file, **changes)
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr("daskinfer.runtime.snapshots.outline_cache.trace_apart", lambda request, dtype: first)
    assert find_outline(registry.url, request, "float32") == first
    assert f"{file} differs from what this machine finds" in caplog.text


def test_a_cache_that_everyone_may_write_in_is_not_used(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, request = seen
    first = find_outline(registry.url, request, "float32")
    (file,) = tmp_path.glob("cache/outlines/*")
    forge(file, units=[])
    assert find_outline(registry.url, request, "float32") != first
    file.parent.chmod(0o777)
    monkeypatch.setattr("daskinfer.runtime.snapshots.outline_cache.trace_apart", lambda request, dtype: first)
    assert find_outline(registry.url, request, "float32") == first


def test_a_stage_refuses_to_run_what_it_did_not_load(seen: Seen) -> None:
    registry, request = seen
    outline = find_outline(registry.url, request, "float32")
    layers = list(outline.layers)
    layers[1] = layers[1].model_copy(update={"units": ()})
    numerics = Numerics(
        dtype="float32", device="cpu", attention="sdpa", kernels=LinearKernels(), threads=1, **versions()
    )
    manifest = registry.manifest(registry.resolve("tiny").snapshot)
    stage = StagePlan.model_construct(first=0, last=len(layers), offload=None)

    def never(pairs: Any, targets: Any) -> int:
        raise AssertionError("something was read")

    with pytest.raises(CheckpointError, match=r"is used by layers 0 to \d+, which do not load it") as refused:
        load_stage(
            request=request,
            outline=outline.model_copy(update={"layers": tuple(layers)}),
            manifest=manifest,
            stage=stage,
            numerics=numerics,
            read=never,
        )
    assert refused.value.hint


def test_a_damaged_outline_is_traced_again(seen: Seen, tmp_path: Path) -> None:
    registry, request = seen
    first = find_outline(registry.url, request, "float32")
    files = [*tmp_path.glob("registry/outlines/*"), *tmp_path.glob("cache/outlines/*")]
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes().replace(b'"event":1', b'"event":0'))
    assert find_outline(registry.url, request, "float32") == first
    assert all(b'"event":1' in file.read_bytes() for file in files)


@pytest.mark.late
def test_a_process_without_torch_has_the_same_found_in_another(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    _, request = seen
    here = trace_apart(request, "float32")
    without = SimpleNamespace(modules={}, executable=sys.executable, path=sys.path)
    with monkeypatch.context() as patch:
        patch.setattr(outlines, "sys", without)
        assert trace_apart(request, "float32") == here
        wrong = TaskRequest("score", ModelOptions(), request.architecture, request.files)
        with pytest.raises(CheckpointError, match="BertModel cannot score") as refused:
            trace_apart(wrong, "float32")
    assert refused.value.hint


def test_the_driver_needs_no_torch_to_plan() -> None:
    code = "import sys, daskinfer.runtime.jobs.job_resolution; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_what_decides_the_outline_is_in_its_key(seen: Seen) -> None:
    _, request = seen

    def key(**options: object) -> str:
        changed = ModelOptions.model_validate(options)
        return outline_key(TaskRequest(request.task, changed, request.architecture, request.files), "float32")

    assert key(max_length=25) == key(max_length=26)
    assert key() != key(max_length=26), "rows as long as the model's positions are tried"
    assert key() != key(pooling="cls")
    assert key(per_token=True) != key(per_token=True, max_length=7)
    assert outline_key(request, "bfloat16") != outline_key(request, "float32")
