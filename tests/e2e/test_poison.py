"""Rows that raise, hang or kill the worker that computes them, on workers of their own that nannies start again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from daskinfer import api
from daskinfer.errors import Interrupted, JobFailed
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from daskinfer.storage.outputs.quarantine import read_quarantine
from daskinfer.testing.models.minefield import HANGS, KILLS, RAISES, make_minefield
from tests.e2e.conftest import data_bytes, run
from tests.e2e.outputs import read_columns
from tests.support.mines import lay, make_recipe

SECONDS = 5


def check(folder: Path, report: Report, values: NDArray[np.float32], kinds: dict[int, str]) -> None:
    """Check that exactly these rows are quarantined, and that every other one is what the plain module returns."""
    quarantine = read_quarantine(str(folder / "out.parquet"), 100)
    assert {reject.row: reject.kind for reject in quarantine} == kinds
    assert (report.rows_out, report.rows_quarantined) == (len(values) - len(kinds), len(kinds))
    kept = np.setdiff1d(np.arange(len(values)), list(kinds))
    written = read_columns(folder / "out.parquet")
    assert np.array_equal(written["row"], kept)
    assert np.array_equal(written["id"], kept)
    with torch.inference_mode():
        expected = make_minefield()(torch.as_tensor(values[kept]))["sums"].numpy()
    np.testing.assert_allclose(written["sums"].reshape(expected.shape), expected, rtol=0, atol=1e-6)


def poison_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (folder / "work/jobs").glob("*/poison/*.json")}


@pytest.mark.usefixtures("every_event_is_told")
def test_rows_that_raise_are_found_and_stay_found(tmp_path: Path, scheduler: str) -> None:
    values = lay(tmp_path, 3000, {1234: (RAISES, 1), 1290: (RAISES, 0), 2345: (RAISES, 0)})

    left = [KeyboardInterrupt]

    def stop(progress: Progress) -> None:
        if left and poison_files(tmp_path):
            raise left.pop()

    recipe = make_recipe(tmp_path)
    with pytest.raises(Interrupted):
        run(recipe, scheduler, watch=stop)
    first = poison_files(tmp_path)
    report = run(recipe, scheduler)
    check(tmp_path, report, values, {1234: "raised", 1290: "raised", 2345: "raised"})
    files = poison_files(tmp_path)
    assert first.items() <= files.items()
    found = {file["partition"] * 1000 + row["row"]: row for file in files.values() for row in file["rows"]}
    assert found[1234]["error"] == "the model raised ValueError: row of 1 cannot be computed, at ..."
    stages = {attempt["stage"] for file in files.values() for attempt in file["attempts"]}
    assert stages == {0, 1}
    # Whoever looks for them finds the same, and computes the same.
    run(make_recipe(tmp_path, output__url=str(tmp_path / "again.parquet")), scheduler)
    assert data_bytes(tmp_path / "again.parquet") == data_bytes(tmp_path / "out.parquet")
    assert report.rejects[0].endswith(":1235: the model raised ValueError: row of 1 cannot be computed, at ...")


@pytest.mark.late
@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_a_row_that_kills_every_worker(tmp_path: Path) -> None:
    values = lay(tmp_path, 3000, {2345: (KILLS, 1)})
    report = api.run(make_recipe(tmp_path))
    check(tmp_path, report, values, {2345: "killed"})
    (file,) = poison_files(tmp_path).values()
    assert file["rows"] == [{"row": 345, "kind": "killed", "error": "it killed the worker that computed it"}]
    assert {attempt["what"] for attempt in file["attempts"]} == {"killed"}
    assert all(attempt["worker"].startswith("tcp://") and attempt["stage"] == 1 for attempt in file["attempts"])
    # Twice among others, once as a whole, once for each power of 16 that the microbatch holds, and once more alone.
    assert report.counters["workers_lost"] <= 2 + 1 + 2 + 1


@pytest.mark.late
@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_one_of_each_among_a_hundred_thousand(tmp_path: Path) -> None:
    values = lay(tmp_path, 100_000, {12_345: (RAISES, 1), 45_678: (HANGS, 0), 78_901: (KILLS, 1)})
    recipe = make_recipe(
        tmp_path, input__partition_rows=5000, pipeline__microbatch_tokens=250, errors__microbatch_seconds=SECONDS
    )
    report = api.run(recipe)
    check(tmp_path, report, values, {12_345: "raised", 45_678: "hung", 78_901: "killed"})
    assert report.counters["probes"] < 150


def test_a_model_that_fails_for_every_row_fails_with_its_own_error(tmp_path: Path, scheduler: str) -> None:
    lay(tmp_path, 2000, dict.fromkeys(range(2000), (RAISES, 1)))
    with pytest.raises(JobFailed, match=r"each of the first 8 rows .* ValueError: row of 1 cannot be computed"):
        run(make_recipe(tmp_path, errors__max_rows=1500), scheduler)
