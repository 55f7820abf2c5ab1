"""Quarantined rows, corrected and retried: the output becomes the one of a job that never had the trouble."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daskinfer import api
from daskinfer.errors import InputError, JobBusy, OutputOwned, RecipeError, RejectBudgetExceeded
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.quarantine import read_quarantine as list_rejects
from daskinfer.storage.outputs.reading import open_output
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.minefield import CLEARED, RAISES, make_minefield
from tests.e2e.command import call
from tests.e2e.conftest import Bench, data_bytes, make_bench, run
from tests.e2e.faults import patched_workers
from tests.e2e.outputs import read_columns, read_quarantine
from tests.e2e.refused_rows import BAD, read_rows, retry, run_spoilt, spoil
from tests.support.mines import lay
from tests.support.mines import make_recipe as make_mines

pytestmark = pytest.mark.late


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> dict[str, Any]:
    """The rows that a job writes when none of them is bad."""
    bench = make_bench(tmp_path_factory.mktemp("calm"), tiny_model, 300)
    run(bench.recipe(), scheduler)
    return read_rows(open_output(str(bench.folder / "out.zarr")))


def assert_calm(output: Path, calm: dict[str, Any]) -> None:
    found = read_rows(open_output(str(output)))
    if output.suffix == ".jsonl":  # values are copied as the JSON text that they are
        found["id"] = [json.loads(text) for text in found["id"]]
    assert found["row"].tolist() == list(range(300)) and found["id"] == calm["id"]
    # Rows that were retried share microbatches with others than in a quiet run, and so do those that they left behind.
    assert np.allclose(found["embedding"], calm["embedding"], atol=1e-6)


@pytest.mark.parametrize("name", ["out.zarr", "out.parquet", "out.jsonl"])
def test_corrected_rows_take_their_places(bench: Bench, scheduler: str, calm: dict[str, Any], name: str) -> None:
    recipe, report = run_spoilt(bench, scheduler, name)
    before = read_rows(open_output(str(bench.folder / name)))
    spoil(bench, {299: "[]", 71: '{"id": "row-71"}'})
    first = retry(report, recipe, scheduler)
    assert first is not None
    (share,) = first.retries
    assert (share.round, share.rows_retried, share.rows_recovered) == (1, 4, 2)
    assert (first.rows_in, first.rows_out, first.rows_quarantined, first.rows_this_run) == (300, 298, 2, 4)
    assert set(read_quarantine(bench.folder / name)) == {71, 299}
    spoil(bench, {})
    second = retry(report, recipe, scheduler)
    assert second is not None
    assert [(share.round, share.rows_retried, share.rows_recovered) for share in second.retries] == [(2, 2, 2)]
    assert retry(report, recipe, scheduler) is None
    assert_calm(bench.folder / name, calm)
    after = read_rows(open_output(str(bench.folder / name)))
    assert np.array_equal(after["embedding"][before["row"]], before["embedding"])
    assert not list((bench.folder / name / "_quarantine").iterdir())
    assert not any((bench.folder / "work").glob("activations/*"))
    # Everybody tells the new counts.
    told = api.report(report.job, recipe.workspace)
    assert (told.rows_out, told.rows_quarantined, told.rejects, told.epoch) == (300, 0, (), 1)
    assert [share.rows_recovered for share in told.retries] == [2, 2]
    assert all(Path(share.report).is_file() and share.seconds > 0 for share in told.retries)
    status = api.status(report.job, recipe.workspace)
    assert (status.state, status.rows_done, status.rows_quarantined) == ("done", 300, 0)
    assert not locks.list_holders(Registry(recipe.registry_url), report.snapshot)


def test_rows_that_fail_again_stay(bench: Bench, scheduler: str) -> None:
    recipe, report = run_spoilt(bench, scheduler, "out.zarr")
    before = data_bytes(bench.folder / "out.zarr")
    again = retry(report, recipe, scheduler)
    assert again is not None and (again.verdict, again.rows_out, again.rows_quarantined) == ("done", 296, 4)
    assert data_bytes(bench.folder / "out.zarr") == before
    assert run(recipe, scheduler).rows_quarantined == 4


def test_a_retry_may_be_told_to_recover_everything(bench: Bench, scheduler: str) -> None:
    recipe, report = run_spoilt(bench, scheduler, "out.parquet")
    before = data_bytes(bench.folder / "out.parquet")
    with pytest.raises(RejectBudgetExceeded):
        retry(report, recipe, scheduler, "errors.max_rows=0")
    assert data_bytes(bench.folder / "out.parquet") == before
    assert api.report(report.job, recipe.workspace).rows_quarantined == 4
    done = retry(report, recipe, scheduler)
    assert done is not None and done.retries[0].round == 1


def test_an_output_whose_rows_name_their_snapshot(bench: Bench, scheduler: str) -> None:
    changes = {"consistency": {"mode": "eventual"}}
    recipe, report = run_spoilt(bench, scheduler, "out.parquet", **changes)
    # The alias moves; the rows stay on the snapshot of their part.
    other = api.publish("tiny", str(bench.model), registry=recipe.registry_url, dtype="bfloat16", alias="prod")
    assert other.snapshot != report.snapshot
    spoil(bench, {})
    done = retry(report, recipe, scheduler)
    assert done is not None and (done.rows_quarantined, done.snapshot) == (0, report.snapshot)
    rows = read_rows(open_output(str(bench.folder / "out.parquet")))
    assert set(rows["snapshot"]) == {report.snapshot} and rows["row"].tolist() == list(range(300))


def clear_mines(patch: pytest.MonkeyPatch, variable: str, place: str) -> None:
    patch.setenv(variable, place)


def test_rows_that_broke_the_model(tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four microbatches of a retry that hold nothing else.
    mines = {5: (RAISES, 0), 20: (RAISES, 1), 33: (RAISES, 1), 50: (RAISES, 0)}
    values = lay(tmp_path, 64, mines)
    recipe = make_mines(tmp_path, input__partition_rows=16, errors__max_rows=5)
    with patched_workers(scheduler, clear_mines, CLEARED, str(tmp_path / "cleared")):
        report = run(recipe, scheduler)
        assert (report.rows_out, report.rows_quarantined) == (60, 4)
        again = retry(report, recipe, scheduler)
        assert again is not None and again.retries[0].rows_recovered == 0
        kinds = {reject.row: reject.kind for reject in list_rejects(recipe.output.url, 9)}
        assert kinds == dict.fromkeys(mines, "raised")
        (tmp_path / "cleared").touch()
        done = retry(report, recipe, scheduler)
    assert done is not None and (done.rows_out, done.rows_quarantined) == (64, 0)
    written = read_columns(tmp_path / "out.parquet")
    assert written["row"].tolist() == written["id"].tolist() == list(range(64))
    monkeypatch.setenv(CLEARED, str(tmp_path))
    with torch.inference_mode():
        expected = make_minefield()(torch.as_tensor(values))["sums"].numpy()
    assert np.allclose(written["sums"], expected, atol=1e-6)


def test_what_cannot_be_retried_is_said(bench: Bench, scheduler: str) -> None:
    recipe, report = run_spoilt(bench, scheduler, "out.parquet")
    before = data_bytes(bench.folder / "out.parquet")
    with pytest.raises(RecipeError, match=r"model\.task=score"):
        retry(report, recipe, scheduler, "model.task=score")
    with pytest.raises(RecipeError, match=r"cluster\.wokers"):
        retry(report, recipe, scheduler, "cluster.wokers=2")
    path = bench.folder / "in.jsonl"
    path.write_text(path.read_text() + '{"id": "row-300", "text": "one more"}\n')
    with pytest.raises(InputError, match=r"in\.jsonl had 300 rows and has 301 now"):
        retry(report, recipe, scheduler)
    path.write_text("".join(json.dumps({"id": n, "text": "ids of another kind"}) + "\n" for n in range(300)))
    with pytest.raises(InputError, match="the columns of"):
        retry(report, recipe, scheduler)
    spoil(bench, {200: json.dumps({"id": "row-200", "text": "another text"})})
    with pytest.raises(InputError, match="have changed in the input, among them some of rows 192 to 255"):
        retry(report, recipe, scheduler)
    store = JobStore(recipe.workspace, report.job)
    held = store.acquire()
    try:
        with pytest.raises(JobBusy):
            retry(report, recipe, scheduler)
    finally:
        held.release()
    assert data_bytes(bench.folder / "out.parquet") == before


def test_a_job_that_stopped_over_its_budget_is_finished_on_corrected_rows(
    bench: Bench, scheduler: str, calm: dict[str, Any]
) -> None:
    spoil(bench, BAD)
    spoilt = (bench.folder / "in.jsonl").read_bytes()
    recipe = bench.recipe("out.zarr", errors__max_rows=0)
    with pytest.raises(RejectBudgetExceeded, match=r"errors\.max_rows allows 0") as stopped:
        run(recipe, scheduler)
    assert "daskinfer retry" in (stopped.value.hint or "")
    (status,) = api.jobs(recipe.workspace)
    spoil(bench, {299: "[]"})
    with pytest.raises(OutputOwned, match="an input file has changed") as refused:
        run(recipe, scheduler)
    assert f"daskinfer retry {status.job}" in (refused.value.hint or "")
    words = (f"cluster.address={scheduler}",)
    with pytest.raises(RejectBudgetExceeded) as still:
        api.retry(status.job, recipe.workspace, overrides=words)
    assert f"daskinfer retry {status.job} --set errors.max_rows=N" in (still.value.hint or "")
    # Rows of both inputs are in no output whose recipe names the old one.
    corrected = (bench.folder / "in.jsonl").read_bytes()
    (bench.folder / "in.jsonl").write_bytes(spoilt)
    with pytest.raises(OutputOwned):
        run(recipe, scheduler)
    (bench.folder / "in.jsonl").write_bytes(corrected)
    done = api.retry(status.job, recipe.workspace, overrides=(*words, "errors.max_rows=1"))
    assert done is not None and (done.verdict, done.rows_out, done.rows_quarantined) == ("done", 299, 1)
    assert api.verify_output(status.job, recipe.workspace).rows_out == 299
    spoil(bench, {})
    again = api.retry(status.job, recipe.workspace, overrides=words)
    assert again is not None and again.rows_quarantined == 0
    assert_calm(bench.folder / "out.zarr", calm)


def test_an_output_that_was_made_anew_is_left_alone(bench: Bench, scheduler: str) -> None:
    recipe, report = run_spoilt(bench, scheduler, "out.jsonl")
    spoil(bench, {})
    run(recipe, scheduler, fresh=True)
    with pytest.raises(OutputOwned):
        retry(report, recipe, scheduler)


def test_the_command(warm: Bench) -> None:
    spoil(warm, BAD)
    ended = call("run", "recipe.yaml", "--json", "--set", "errors.max_rows=10", cwd=warm.folder)
    assert ended.code == 0, ended.err
    job = ended.json["job"]
    spoil(warm, {3: BAD[3]})
    ended = call("retry", job[:-3], "--json", cwd=warm.folder)
    assert ended.code == 0, ended.err
    facts = ended.json
    assert (facts["job"], facts["rows_retried"], facts["rows_recovered"], facts["rows_quarantined"]) == (job, 4, 3, 1)
    assert Path(facts["report"]).is_file() and facts["output"] == str(warm.folder / "out.zarr") and facts["seconds"] > 0
    wrong = call("retry", "nobody", "--json", cwd=warm.folder)
    assert (wrong.code, wrong.json["job"]) == (2, None) and "no job nobody" in wrong.err
    spoil(warm, {})
    assert "1 of 1 quarantined rows are in the output now" in call("retry", job, cwd=warm.folder).out
    assert "nothing to retry" in call("retry", job, cwd=warm.folder).out


KILLED = """
import os, signal, sys
from daskinfer import api
job, workspace, scheduler, folder, step = sys.argv[1:]
made = []
def stop(call):
    def change(*words, **options):
        if str(words[-1]).startswith(folder):
            made.append(words)
            if len(made) > int(step):
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **options)
    return change
os.replace, os.link = stop(os.replace), stop(os.link)
api.retry(job, workspace, overrides=[f"cluster.address={scheduler}"])
"""


@pytest.mark.late
@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(bench: Bench, scheduler: str, calm: dict[str, Any]) -> None:
    """Each driver gets a little further than the one before, from the first record of the round to the manifest."""
    recipe, report = run_spoilt(bench, scheduler, "out.zarr")
    spoil(bench, {})
    folder = str(bench.folder / "out.zarr")
    codes = []
    for step in (0, 1, 2, 3, 5, 8, 13):
        words = [report.job, recipe.workspace, scheduler, folder, str(step)]
        ended = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
        codes.append(ended.returncode)
        assert ended.returncode in (0, -9), ended.stderr
    assert codes.count(-9) >= 5
    done = retry(report, recipe, scheduler)
    assert done is None or done.rows_quarantined == 0
    assert_calm(bench.folder / "out.zarr", calm)
    assert api.report(report.job, recipe.workspace).rows_quarantined == 0
    manifest = json.loads((bench.folder / "out.zarr/_MANIFEST.json").read_text())
    assert [told["rows_recovered"] for told in manifest["retries"]] == [4]
