"""Draining a worker in mid-run, and cancelling a job, by way of its workspace alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client

from daskinfer import api
from daskinfer.errors import Cancelled, JobFailed, UsageError
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.record import Progress
from daskinfer.storage.jobs.lease import read_heartbeat
from daskinfer.storage.jobs.store import JobStore
from tests.e2e.command import call
from tests.e2e.conftest import Bench, data_bytes, run, write_rows
from tests.e2e.faults import commits, once, patched_workers
from tests.e2e.outputs import read_microbatches

pytestmark = [pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 600


def count_and_slow_down(patch: pytest.MonkeyPatch, folder: str) -> None:
    """Let every pass through a stage leave a file, and take its time until it may go on."""
    from distributed import get_worker

    from daskinfer.models.execution.stage import Stage

    real = Stage.run

    def run(stage: Any, *words: Any) -> Any:
        worker = get_worker()
        place = worker.get_current_task()
        Path(folder, f"{time.monotonic_ns()} {worker.address.rpartition(':')[2]} {hash(place)}").touch()
        if not Path(folder, "go").exists():
            time.sleep(0.2)
        return real(stage, *words)

    patch.setattr(Stage, "run", run)


def passes(folder: Path) -> list[tuple[str, str]]:
    """Return (worker's port, task) of every pass through a stage, in order."""
    found = sorted(path.name.split() for path in folder.iterdir() if path.name != "go")
    return [(port, task) for _, port, task in found]


@pytest.fixture
def bench(bench: Bench) -> Bench:
    write_rows(bench.folder / "in.jsonl", ROWS)
    return bench


@pytest.fixture
def passed(tmp_path: Path) -> Path:
    folder = tmp_path / "passes"
    folder.mkdir()
    return folder


def small(bench: Bench, name: str = "out.zarr", **changes: Any) -> Any:
    # Little is in work at any time, so that what the drained worker has a hand in ends before the job does.
    return bench.recipe(name, input__partition_rows=8, pipeline__window=2, **changes)


class Drained:
    """A `watch` that drains a worker of a stage once 32 rows are committed, and lets the job run freely once that is done."""

    def __init__(self, bench: Bench, choose: Callable[[tuple[WorkerState, ...]], str], go: Path) -> None:
        self._workspace, self._choose, self._go = str(bench.folder / "work"), choose, go
        self.worker = ""
        self.before = 0
        self.seen: list[tuple[WorkerState, ...]] = []

    def __call__(self, progress: Progress) -> None:
        if not self.worker and progress.rows_done >= 32 and self._is_shown(progress):
            self.worker = self._choose(progress.workers)
            api.drain(progress.job, self.worker.rpartition("//")[2], self._workspace, wait=False)
        if self.worker:
            self.seen.append(progress.workers)
        if progress.message.startswith("drained"):
            self.before = len(passes(self._go.parent))
            self._go.touch()

    def _is_shown(self, progress: Progress) -> bool:
        """Whether `daskinfer status` would show that all workers compute."""
        heartbeat = read_heartbeat(JobStore(self._workspace, progress.job).url)
        shown = heartbeat.progress if heartbeat else None
        return shown is not None and bool(shown.workers) and all(one.does == "computes" for one in shown.workers)


def the_only_one(workers: tuple[WorkerState, ...]) -> str:
    (lonely,) = [one for one in workers if sum(one.stages == other.stages for other in workers) == 1]
    return lonely.worker


def one_of_two(workers: tuple[WorkerState, ...]) -> str:
    return next(one.worker for one in workers if sum(one.stages == other.stages for other in workers) == 2)


@pytest.mark.parametrize("choose", [the_only_one, pytest.param(one_of_two, marks=pytest.mark.late)])
def test_a_drained_worker_finishes_its_work_and_nothing_is_lost_or_done_twice(
    bench: Bench, scheduler: str, passed: Path, choose: Callable[[tuple[WorkerState, ...]], str]
) -> None:
    run(small(bench, "calm.zarr"), scheduler, workers=3)
    drained = Drained(bench, choose, passed / "go")
    recipe = small(bench)
    with patched_everywhere(scheduler, passed):
        report = run(recipe, scheduler, workers=3, watch=drained)
    kinds = [incident.kind for incident in report.incidents]
    assert kinds[0] == "drain-asked" and kinds[-1] == "drained"
    assert ("stage-doubled" in kinds) == (choose is the_only_one)
    assert report.counters["workers_lost"] == report.counters["microbatches_recomputed"] == 0
    # Every microbatch went through every stage once: nothing that the worker had done was done again.
    microbatches = sum(len(each) for each in read_microbatches(recipe, report))
    assert len(passes(passed)) == 2 * microbatches
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")
    # It leaves before it is gone, and does nothing afterwards.
    port = drained.worker.rpartition(":")[2]
    before, after = passes(passed)[: drained.before], passes(passed)[drained.before :]
    assert port in {each for each, _ in before} and after and port not in {each for each, _ in after}
    states = [{one.worker: one.does for one in roster} for roster in drained.seen]
    assert any(state.get(drained.worker) == "leaves" for state in states)
    assert drained.worker not in states[-1]
    with Client(scheduler) as client:
        assert drained.worker in client.scheduler_info(n_workers=-1)["workers"]  # other jobs may still use it


def patched_everywhere(scheduler: str, folder: Path) -> Any:
    return patched_workers(scheduler, count_and_slow_down, str(folder))


def test_a_cancelled_job_stops_as_if_interrupted_and_is_resumed(bench: Bench, scheduler: str) -> None:
    workspace, recipe = str(bench.folder / "work"), small(bench)

    def watch(progress: Progress) -> None:
        cancel(progress)

    def ask() -> None:
        (job,) = api.jobs(workspace)
        assert job.state == "running"
        api.cancel(job.job, workspace, wait=False)
        # What is left must not be done before the driver looks.
        time.sleep(1.2)

    cancel = once(32, ask)
    with pytest.raises(Cancelled, match=r"cancelled by .*@.* at 20") as stopped:
        run(recipe, scheduler, watch=watch)
    assert stopped.value.exit_code == 130
    (job,) = api.jobs(workspace)
    assert job.state == "cancelled" and "cancelled it at 20" in job.message
    assert 0 < len(commits(bench.folder / "out.zarr")) < ROWS // 8
    with pytest.raises(UsageError, match=f"job {job.job} is not running: it is cancelled"):
        api.cancel(job.job, workspace)

    report = run(recipe, scheduler)
    (resumed,) = [incident.detail for incident in report.incidents if incident.kind == "resumed"]
    assert "it was cancelled by " in resumed
    assert report.rows_out == ROWS
    assert api.status(job.job, workspace).state == "done"


def test_who_asks_for_what_is_not_there_is_told(bench: Bench, scheduler: str) -> None:
    workspace = str(bench.folder / "work")
    found: list[str] = []

    def ask() -> None:
        (job,) = api.jobs(workspace)
        while not (job.progress and job.progress.workers):
            time.sleep(0.2)
            (job,) = api.jobs(workspace)
        for wanted in ("nobody:1", "tcp://"):
            with pytest.raises(UsageError) as refused:
                api.drain(job.job, wanted, workspace)
            found.append(str(refused.value))

    report = run(small(bench), scheduler, watch=once(32, ask))
    assert f"job {report.job} has no worker nobody:1" in found[0] and "127.0.0.1:" in found[0]
    assert "tcp:// may mean tcp://127.0.0.1:" in found[1]
    ended = call("drain", report.job, "nobody:1", cwd=bench.folder)
    assert ended.code == 2 and "is not running" in ended.err and "it is done" in ended.err


def test_a_driver_that_ends_before_it_answers_is_told_of(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = str(bench.folder / "work")
    report = run(small(bench), scheduler)
    # As if the driver had still been there when the request was written.
    states = iter(["running"])
    real = JobStore.state
    monkeypatch.setattr(JobStore, "state", lambda store: next(states, None) or real(store))
    with pytest.raises(JobFailed, match="ended before it answered: the job is done"):
        api.cancel(report.job, workspace)
