"""Inputs whose rows are changed under a retry: it is killed before each of its steps, and rows change once more."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer import api
from daskinfer.errors import Interrupted, OutputOwned
from daskinfer.runtime.jobs.whole_job import WholeJob
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.reading import open_output
from tests.e2e.conftest import Bench, data_bytes, run
from tests.e2e.faults import interrupt, once
from tests.e2e.refused_rows import BAD, read_rows, retry, run_spoilt, spoil

pytestmark = pytest.mark.late

CHANGED = {100: json.dumps({"id": "row-100", "text": "a dog"}), 150: json.dumps({"id": "row-150", "text": "a cat"})}


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(patch: pytest.MonkeyPatch, folder: Path, step: int) -> list[str]:
    """Raise at the change of this number below a folder, and at every one after it; return where the ones before it were."""
    made: list[str] = []

    def fail(call: Any) -> Any:
        def change(*words: Any, **options: Any) -> Any:
            if str(words[-1]).startswith(str(folder)):
                if len(made) >= step:
                    raise Killed
                made.append(str(words[-1]))
            return call(*words, **options)

        return change

    for module, name in ((os, "replace"), (os, "link"), (os, "rename"), (os, "unlink"), (os, "rmdir")):
        patch.setattr(module, name, fail(getattr(module, name)))
    return made


def open_killed(job: str, recipe: Recipe, scheduler: str, step: int | None) -> int:
    """Begin to finish a stopped job, up to its first task or to one of the changes before it; return how many there were."""
    killed = False
    with pytest.MonkeyPatch.context() as patch:
        made: list[str] = []
        open_before = WholeJob._open_output

        def begin(work: WholeJob) -> Any:
            nonlocal killed
            with pytest.MonkeyPatch.context() as inner:
                found = kill_at(inner, Path(recipe.workspace).parent, 10**6 if step is None else step)
                try:
                    open_before(work)
                except Killed:
                    killed = True
                made.extend(found)
            raise Killed

        patch.setattr(WholeJob, "_open_output", begin)
        with pytest.raises(Killed):
            api.retry(job, recipe.workspace, overrides=[f"cluster.address={scheduler}"])
    assert killed == (step is not None)
    return len(made)


@pytest.mark.slow
def test_a_stopped_job_is_finished_though_its_retry_was_killed(bench: Bench, scheduler: str) -> None:
    """Killed before each change, it is gone on with by `run`, or by `retry` where that refuses."""
    spoil(bench, BAD)
    recipe = bench.recipe("out.jsonl", errors__max_rows=10, input__partition_rows=32)
    interrupt(recipe, scheduler, 160)
    (status,) = api.jobs(recipe.workspace)
    spoil(bench, CHANGED)
    run(bench.recipe("calm.jsonl", input__partition_rows=32), scheduler)
    wanted = data_bytes(bench.folder / "calm.jsonl")
    kept = [bench.folder / name for name in ("work/jobs", "out.jsonl")]
    for place in kept:
        shutil.copytree(place, bench.folder / "before" / place.name)
    steps = open_killed(status.job, recipe, scheduler, None)
    assert steps > 5
    inputs = JobStore(recipe.workspace, status.job).inputs(JobStore(recipe.workspace, status.job).record())
    # Some of them: only before the last change, and after it, do the two find different things.
    cases = [(step, "run" if step % 2 else "retry") for step in range(0, steps - 1, 3)]
    for step, way in [*cases, (steps - 1, "run"), (steps - 1, "retry"), (None, "run"), (None, "retry")]:
        for place in kept:
            shutil.rmtree(place)
            shutil.copytree(bench.folder / "before" / place.name, place)
        open_killed(status.job, recipe, scheduler, step)
        if way == "run":
            with suppress(OutputOwned):
                run(recipe, scheduler)
        if way == "retry" or api.status(status.job, recipe.workspace).state != "done":
            api.retry(status.job, recipe.workspace, overrides=[f"cluster.address={scheduler}"])
        assert data_bytes(bench.folder / "out.jsonl") == wanted, (step, way)
        manifest = json.loads((bench.folder / "out.jsonl/_MANIFEST.json").read_text())
        assert manifest["inputs"] == inputs and manifest["rows_quarantined"] == 0
        assert api.verify_output(status.job, recipe.workspace).rows_out == 300
        (unchanged,) = (bench.folder / "out.jsonl/_daskinfer/commits").glob("*/00000001.json")
        assert json.loads(unchanged.read_text())["epoch"] == 1


@pytest.mark.parametrize("all_committed", [False, True])
def test_rows_that_are_corrected_once_more_during_a_retry(
    bench: Bench, scheduler: str, every_event_is_told: None, all_committed: bool
) -> None:
    # It stops right after the first commit, or after the last; the workers may bring others to their end.
    recipe, report = run_spoilt(bench, scheduler, "out.jsonl")
    spoil(bench, {3: json.dumps({"id": "row-3", "text": "first"}), 70: json.dumps({"id": "row-70", "text": "first"})})

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        words = (f"cluster.address={scheduler}",)
        api.retry(report.job, recipe.workspace, overrides=words, watch=once(4 if all_committed else 1, stop))
    rounds = bench.folder / "out.jsonl/_daskinfer/retries"
    assert [*rounds.glob("*/0001/commits/*.json")] and not [*rounds.glob("*/0001/before.json")]
    spoil(bench, {row: json.dumps({"id": f"row-{row}", "text": "second"}) for row in BAD})
    done = retry(report, recipe, scheduler)
    assert done is not None and done.rows_quarantined == 0
    found = read_rows(open_output(str(bench.folder / "out.jsonl")))["embedding"]
    np.testing.assert_allclose(found[[*BAD]], np.repeat(found[3:4], len(BAD), axis=0), atol=1e-5)
