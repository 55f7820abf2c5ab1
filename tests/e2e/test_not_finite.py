"""Whole jobs whose model returns NaN for some rows, under each policy, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from daskinfer import api
from daskinfer.testing.tinymodels import make_tiny_bert
from tests.e2e.command import Ended, start
from tests.e2e.conftest import Bench, read_output

pytestmark = pytest.mark.late

ROWS = 300


@pytest.fixture
def poisoned(warm: Bench) -> tuple[Bench, list[bool]]:
    """The bench with `tiny@prod` such that a text with a certain token gives NaN, and which rows have it."""
    model = make_tiny_bert(warm.folder / "nan", layers=4)
    rows = [json.loads(line)["text"] for line in (warm.folder / "in.jsonl").read_text().splitlines()]
    tokens = AutoTokenizer.from_pretrained(model)(rows, truncation=True, max_length=48)["input_ids"]
    # About a third of the rows have it.
    token = min(
        {each for row in tokens for each in row}, key=lambda each: abs(sum(each in row for row in tokens) - 100)
    )
    weights = load_file(model / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][token] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    api.publish("tiny", str(model), registry=str(warm.folder / "work/registry"), alias="prod")
    return warm, [token in row for row in tokens]


def counts(ended: Ended) -> tuple[int, int, int]:
    found = ended.json
    return found["rows_out"], found["rows_quarantined"], found["rows_not_finite"]


def test_they_are_quarantined(poisoned: tuple[Bench, list[bool]]) -> None:
    bench, is_nan = poisoned
    ended = start(bench, errors__max_rows=ROWS)
    assert ended.code == 0, ended.err
    assert counts(ended) == (ROWS - sum(is_nan), sum(is_nan), sum(is_nan))
    output = read_output(bench.folder / "out.zarr")
    assert output["valid"].tolist() == [not each for each in is_nan]
    assert np.isfinite(output["embedding"][output["valid"]]).all()
    quarantine = [path.read_text() for path in sorted((bench.folder / "out.zarr/_quarantine").iterdir())]
    rejects = [json.loads(line) for text in quarantine for line in text.splitlines()]
    assert [reject["row"] for reject in rejects] == np.flatnonzero(is_nan).tolist()
    assert {reject["error"] for reject in rejects} == {"the model returned NaN in 32 of 32 numbers of embedding"}
    # They count as bad rows do.
    over = start(bench, errors__max_rows=3, output__url="other.zarr")
    assert over.code == 4, over.err


@pytest.mark.parametrize("output", ["out.zarr", "out.parquet", "out.jsonl"])
def test_they_are_kept_and_counted(poisoned: tuple[Bench, list[bool]], output: str) -> None:
    bench, is_nan = poisoned
    ended = start(bench, errors__nan="keep", output__url=output)
    assert ended.code == 0, ended.err
    assert counts(ended) == (ROWS, 0, sum(is_nan))
    assert f"{sum(is_nan)} with NaN or infinity" in ended.err
    folder = bench.folder / output
    if output.endswith(".zarr"):
        vectors = read_output(folder)["embedding"]
    elif output.endswith(".parquet"):
        vectors = np.array(pq.read_table(folder)["embedding"].to_pylist())
    else:
        parts = sorted(folder.glob("*.jsonl"))
        lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
        vectors = np.array([line["embedding"] for line in lines], float)
    assert np.isnan(vectors).all(axis=1).tolist() == is_nan


def test_the_first_stops_the_job(poisoned: tuple[Bench, list[bool]]) -> None:
    bench, is_nan = poisoned
    ended = start(bench, errors__nan="stop")
    assert ended.code == 1, ended.err
    rows = {
        f"row {row}, {bench.folder}/in.jsonl:{row + 1}: the model returned NaN in 32 of 32 numbers of embedding"
        for row in np.flatnonzero(is_nan)
    }
    assert any(row in ended.err for row in rows)
    assert "errors.nan" in ended.err
    assert "To resume" not in ended.err
    assert ended.json["resume"] is None


def test_rows_beside_them_have_their_own_values(poisoned: tuple[Bench, list[bool]], tiny_model: Path) -> None:
    bench, is_nan = poisoned
    assert start(bench, errors__max_rows=ROWS).code == 0
    api.publish("tiny", str(tiny_model), registry=str(bench.folder / "work/registry"), alias="prod")
    assert start(bench, output__url="sound.zarr").code == 0
    found, sound = (read_output(bench.folder / name)["embedding"] for name in ("out.zarr", "sound.zarr"))
    assert np.array_equal(found[~np.array(is_nan)], sound[~np.array(is_nan)])
