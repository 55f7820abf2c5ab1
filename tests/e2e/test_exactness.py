"""Staged output against the unsplit model, bit for bit, whatever the cut, the transport and the number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daskinfer.models.execution.onednn import find_linear
from daskinfer.models.preprocessing.tokenizer import make_tokenizer
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.spec.kernels import Kernel, LinearKernels
from daskinfer.testing.models.reference import run_unsplit
from tests.e2e.conftest import Bench, data_bytes, read_output, run

needs_onednn = pytest.mark.skipif(find_linear() is None, reason="this build of torch has no oneDNN")


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Any:
    """Compute what plain PyTorch gives at the same microbatches and by the same kernels."""

    def compute(bench: Bench, kernels: Kernel) -> NDArray[np.float32]:
        by = LinearKernels(small=kernels, medium=kernels, large=kernels)
        texts = [json.loads(line)["text"] for line in (bench.folder / "in.jsonl").read_text().splitlines()]
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.suffix == ".json"}
        tokenizer = make_tokenizer(files, 48)
        parts = []
        for first in range(0, len(texts), 64):
            rows = tokenizer.encode(texts[first : first + 64])
            microbatches = pack_microbatches([len(row) for row in rows], 512)
            padded = []
            for microbatch in microbatches:
                ids = np.zeros((len(microbatch.rows), microbatch.length), np.int32)
                for place, row in enumerate(microbatch.rows):
                    ids[place, : len(rows[row])] = rows[row]
                padded.append((ids, np.array([len(rows[row]) for row in microbatch.rows], np.int32)))
            results = run_unsplit(tiny_model, padded, kernels=by)
            ordered = np.empty((len(rows), results[0].shape[1]), np.float32)
            for microbatch, result in zip(microbatches, results, strict=True):
                ordered[list(microbatch.rows)] = result
            parts.append(ordered)
        return np.concatenate(parts)

    return compute


def test_every_cut_transport_and_cluster_gives_the_same_bits(bench: Bench, scheduler: str, expected: Any) -> None:
    reference = expected(bench, "torch")
    first: dict[str, bytes] | None = None
    for stages, replicas in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)):
        for transport in ("zarr", "direct") if stages > 1 else ("direct",):
            name = f"{stages}-{replicas}-{transport}.zarr"
            recipe = bench.recipe(
                name, pipeline__stages=stages, pipeline__activations={"transport": transport}, model__kernels="torch"
            )
            report = run(recipe, scheduler, workers=stages * replicas)
            assert (report.rows_in, report.rows_out, report.rows_quarantined) == (300, 300, 0)
            assert [len(stage.workers) for stage in report.stages] == [replicas] * stages
            output = bench.folder / name
            arrays = read_output(output)
            assert np.array_equal(arrays["embedding"], reference), name
            assert arrays["id"].tolist() == [f"row-{n}" for n in range(300)]
            assert first is None or data_bytes(output) == first
            first = data_bytes(output)


@pytest.mark.parametrize("kernels", [pytest.param("onednn", marks=needs_onednn), "auto"])
def test_other_kernels_give_the_same_bits_cut_or_not(kernels: str, bench: Bench, scheduler: str, expected: Any) -> None:
    cut = run(bench.recipe("cut.zarr", pipeline__stages=2, model__kernels=kernels), scheduler, workers=2)
    run(bench.recipe("whole.zarr", pipeline__stages=1, model__kernels=kernels), scheduler)
    assert data_bytes(bench.folder / "cut.zarr") == data_bytes(bench.folder / "whole.zarr")
    assert ("onednn" in cut.kernels) == (kernels == "onednn")
    if kernels == "onednn":
        assert np.array_equal(read_output(bench.folder / "cut.zarr")["embedding"], expected(bench, "onednn"))


def test_transformers_own_result_at_any_batching(bench: Bench, scheduler: str, tiny_model: Path) -> None:
    run(bench.recipe(), scheduler)
    embedding = read_output(bench.folder / "out.zarr")["embedding"]
    texts = [json.loads(line)["text"] for line in (bench.folder / "in.jsonl").read_text().splitlines()]
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.suffix == ".json"}
    rows = make_tokenizer(files, 48).encode(texts)
    alone = [(row[None, :], np.array([len(row)], np.int32)) for row in rows]
    assert np.abs(np.concatenate(run_unsplit(tiny_model, alone)) - embedding).max() < 1e-5
