"""What workers compute on and in: loading, precision, too little memory, and GPUs where there are some."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from distributed import LocalCluster
from numpy.typing import NDArray

from daskinfer import api
from daskinfer.errors import PlanError
from daskinfer.models.entry import find_entry, load_entry
from daskinfer.models.preprocessing.tokenizer import make_tokenizer
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import cut_checkpoint, request_of, run_through
from daskinfer.testing.models.reference import run_unsplit
from daskinfer.testing.models.tinymodels import make_tiny
from tests.e2e.conftest import Bench, data_bytes, make_bench, read_output, run

pytestmark = pytest.mark.late

MODULE = '''
import multiprocessing
import time

import torch
from torch import nn


class Gate(nn.Module):
    """Every row by itself, so that parts have the bits of the whole."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))  # a row may be narrower

    def forward(self, x):
        return torch.tanh(x * self.scale[: x.shape[-1]])


class Model(nn.Module):
    def __init__(self, width=8, depth=4):
        super().__init__()
        self.body = nn.ModuleList(Gate(width) for _ in range(depth))

    def forward(self, features):
        x = features
        for layer in self.body:
            x = layer(x)
        self.check(x)
        return {"y": x}

    def check(self, x):
        pass


class Limited(Model):
    """Has no room for more than 20 rows, after all its layers."""

    def check(self, x):
        if len(x) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Greedy(Model):
    """Takes 20 MB of a GPU for every row, of 1 GB that it has."""

    def check(self, x):
        if x.is_cuda:
            total = torch.cuda.get_device_properties(x.device).total_memory
            torch.cuda.set_per_process_memory_fraction(10**9 / total)
            torch.empty(len(x), 20 * 10**6, dtype=torch.uint8, device=x.device)


def make_limited():
    return Limited()


def make_greedy():
    return Greedy()


def make_slow():
    """Return a model of 64 MB whose bytes come slowly into a worker."""
    if multiprocessing.parent_process() is not None:
        from daskinfer.storage.tensors import range_reads

        read = range_reads._read_local

        def wait(chunk, buffers):
            time.sleep(0.4)
            read(chunk, buffers)

        range_reads._read_local = wait
    return Model(500_000, 32)
'''


def module_name(tmp_path: Path) -> str:
    """Return a name for the module of one test: what was imported stays imported."""
    return f"own_{tmp_path.name}".replace("-", "_")


def make_features() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """A recipe for one of the models above over 300 rows, in partitions of 64."""
    name = module_name(tmp_path)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    features = pa.FixedSizeListArray.from_arrays(pa.array(make_features().ravel()), 8)
    pq.write_table(pa.table({"features": features}), tmp_path / "in.parquet")

    def recipe(function: str, output: str = "out.zarr", **pipeline: Any) -> Recipe:
        document = {
            "daskinfer": 1,
            "name": "own",
            "workspace": str(tmp_path / "work"),
            "model": {"checkpoint": "own@prod", "task": "forward"},
            "input": {"url": str(tmp_path / "in.parquet"), "columns": {"features": "features"}, "partition_rows": 64},
            "output": {"url": str(tmp_path / output)},
            "pipeline": {"stages": 2, **pipeline},
            "cluster": {"local": {"workers": 2}},
        }
        made = Recipe.model_validate(document)
        api.publish("own", entry=f"{name}:{function}", registry=made.registry_url, alias="prod")
        return made

    return recipe


def test_what_does_not_fit_is_computed_in_parts(own: Callable[..., Recipe], tmp_path: Path) -> None:
    report = api.run(own("make_limited", microbatch_tokens=64))
    # 64 rows, then 32, then 16, which the worker remembers for the other partitions.
    assert [stage.out_of_memory for stage in report.stages] == [0, 2]
    assert [stage.microbatches for stage in report.stages] == [5, 5]
    model = load_entry(find_entry(f"{module_name(tmp_path)}:make_limited"), weights=True)
    with torch.inference_mode():
        parts = [model(torch.from_numpy(features))["y"] for features in np.split(make_features(), range(16, 300, 16))]
    assert np.array_equal(read_output(tmp_path / "out.zarr")["y"], torch.cat(parts).numpy())


def test_loading_is_shown_while_it_goes(own: Callable[..., Recipe]) -> None:
    seen: list[Progress] = []
    report = api.run(own("make_slow", stages=[16]), watch=seen.append)
    loading = [progress for progress in seen if progress.phase == "loading" and progress.total_shards]
    whole = 64 * 10**6
    assert {(progress.total_bytes, progress.total_shards) for progress in loading} == {(whole, 2)}
    partly = [progress.loaded_bytes for progress in loading if 0 < progress.loaded_bytes < whole]
    assert partly == sorted(partly) and len(set(partly)) > 1
    assert seen[-1].loaded_bytes == whole and seen[-1].loaded_shards == 2
    assert all(name for name in seen[-1].devices)
    for stage in report.stages:
        assert stage.load_seconds > 0.4
        assert stage.read_bytes == stage.stored_bytes == stage.shard_bytes == whole / 2


def test_the_choice_of_a_precision_is_told(bench: Bench, scheduler: str) -> None:
    seen: list[Progress] = []
    recipe = bench.recipe(model__dtype="auto")
    report = run(recipe, scheduler, watch=seen.append)
    assert report.precision.startswith("float32: ") and "stored in float32" in report.precision
    assert [progress.message for progress in seen].count(f"precision: {report.precision}") == 1
    assert f"precision: {report.precision}" in api.validate(recipe)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_equal_the_unsplit_model(bench: Bench, scheduler: str, tiny_model: Path, dtype: str) -> None:
    report = run(bench.recipe(model__dtype=dtype), scheduler)
    assert report.precision.startswith(f"{dtype} as the recipe says")
    found = read_output(bench.folder / "out.zarr")["embedding"]
    assert np.array_equal(found, compute(bench, tiny_model, dtype))
    for stage in report.stages:
        assert stage.stored_bytes == 2 * stage.shard_bytes, "float32 in the registry"
        assert stage.stored_bytes <= stage.read_bytes <= 1.02 * stage.stored_bytes


def test_tied_embeddings_are_read_by_both_ends(tmp_path: Path, scheduler: str) -> None:
    settings = {"tie_word_embeddings": True, "hidden_size": 64, "vocab_size": 4000}
    model = make_tiny(tmp_path / "llama", "LlamaForCausalLM", settings=settings)
    bench = make_bench(tmp_path, model, 60)
    report = run(bench.recipe(model__task="score", pipeline__stages=3), scheduler, workers=3)
    embedding = 4000 * 64 * 4
    layers = [stage.stored_bytes - share for stage, share in zip(report.stages, (embedding, 0, embedding), strict=True)]
    assert all(0 < size < 3 * embedding / 2 for size in layers), layers
    for stage in report.stages:
        assert stage.stored_bytes <= stage.read_bytes <= 1.02 * stage.stored_bytes


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[str]:
    """The address of two workers that declare less memory than half of the tiny model takes."""
    # Nothing may come of what is only declared.
    settings = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=60_000,
            resources={"GPU": 1},
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path / "dask"),
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster.scheduler_address


def test_a_shard_larger_than_its_worker_computes_from_disk(
    bench: Bench, scheduler: str, cramped: str, tmp_path: Path
) -> None:
    run(bench.recipe("plain.zarr"), scheduler)
    recipe = bench.recipe("lean.zarr", cluster__address=cramped)
    for offload in ("none", "cpu"):
        refused = recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"offload": offload})})
        with pytest.raises(PlanError) as caught:
            api.run(refused)
        assert "set placement.offload to disk" in str(caught.value.hint)
    report = api.run(bench.recipe("lean.zarr", cluster__address=cramped, placement__offload="disk"))
    assert [stage.offload for stage in report.stages] == ["disk", "disk"]
    assert data_bytes(bench.folder / "lean.zarr") == data_bytes(bench.folder / "plain.zarr")
    # Jobs that leave a cluster of others take their files along.
    assert list((tmp_path / "dask").rglob("worker-*")) and not list(tmp_path.rglob("*.dat"))


def compute(bench: Bench, model: Path, dtype: str = "float32") -> NDArray[np.float32]:
    """Return what plain PyTorch gives at the microbatches of the bench's recipe."""
    texts = [json.loads(line)["text"] for line in (bench.folder / "in.jsonl").read_text().splitlines()]
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix == ".json"}
    rows = make_tokenizer(files, 48).encode(texts)
    result: NDArray[np.float32] | None = None
    for first in range(0, len(rows), 64):
        part = rows[first : first + 64]
        for microbatch in pack_microbatches([len(row) for row in part], 512):
            chosen = [part[row] for row in microbatch.rows]
            ids = np.zeros((len(chosen), microbatch.length), np.int32)
            for place, row in enumerate(chosen):
                ids[place, : len(row)] = row
            (values,) = run_unsplit(model, [(ids, np.array([len(row) for row in chosen], np.int32))], dtype=dtype)
            if result is None:
                result = np.empty((len(rows), values.shape[1]), np.float32)
            result[[first + row for row in microbatch.rows]] = values
    assert result is not None
    return result


# GPUs


def run_on_gpu(bench: Bench, name: str, dtype: str) -> tuple[NDArray[np.float32], Any]:
    """Run the bench's recipe in two stages by two workers that share a GPU."""
    report = api.run(bench.recipe(name, model__dtype=dtype, cluster__local={"workers": 2}))
    return read_output(bench.folder / name)["embedding"], report


@pytest.mark.gpu
def test_gpu_equals_the_cpu_within_tolerance(bench: Bench, tiny_model: Path) -> None:
    found, report = run_on_gpu(bench, "gpu.zarr", "float32")
    assert np.allclose(found, compute(bench, tiny_model), rtol=1e-4, atol=1e-5)
    for stage in report.stages:
        assert stage.device.startswith("cuda: ")
        assert stage.device_peak >= stage.shard_bytes
    assert sum(len(set(stage.workers)) for stage in report.stages) == 2
    progress = api.status(report.job, bench.recipe().workspace).progress
    assert progress is not None and all("at most" in name for name in progress.devices)
    again, _ = run_on_gpu(bench, "again.zarr", "float32")
    assert np.array_equal(again, found)


@pytest.mark.gpu
def test_gpu_in_bfloat16(bench: Bench, tiny_model: Path) -> None:
    found, report = run_on_gpu(bench, "gpu.zarr", "auto")
    assert report.precision.startswith("bfloat16: ")
    expected = compute(bench, tiny_model)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(found, expected)


@pytest.mark.gpu
def test_gpu_without_memory_computes_in_parts(own: Callable[..., Recipe], tmp_path: Path) -> None:
    report = api.run(own("make_greedy", microbatch_tokens=64))
    # 64 rows want 1.28 GB of 1 GB, 32 rows have room, and that is remembered.
    assert [stage.out_of_memory for stage in report.stages] == [0, 1]
    assert 6 * 10**8 < report.stages[1].device_peak < 10**9
    report = api.run(own("make_greedy", "small.zarr", microbatch_tokens=32))
    assert [stage.out_of_memory for stage in report.stages] == [0, 0]
    assert np.array_equal(read_output(tmp_path / "out.zarr")["y"], read_output(tmp_path / "small.zarr")["y"])


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_gpu_brings_offloaded_weights(tmp_path: Path, tiny_model: Path, offload: str) -> None:
    registry = Registry(str(tmp_path / "registry"))
    api.publish("m", str(tiny_model), registry=registry.url)
    request = request_of(registry, "m@v1")
    ids = np.random.default_rng(0).integers(5, 50, (4, 9))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    results = []
    for chosen in ("none", offload):
        _, stages = cut_checkpoint(registry, "m@v1", request, 2, offload=chosen, device="cuda")
        results.append(run_through(stages, inputs)["embedding"])
    assert np.array_equal(results[0], results[1])
