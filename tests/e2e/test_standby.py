"""Workers without a nanny, so that who is killed stays away: standbys, doubles, and those who join."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest
from distributed import Client, Scheduler, SpecCluster

from daskinfer import api
from daskinfer.runtime.cluster.forking import fork_workers
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from tests.e2e.conftest import Bench, data_bytes, make_bench

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.late,
    pytest.mark.campaign,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("every_event_is_told"),
]

ROWS, PARTITION = 960, 16


class Workers:
    """Worker processes of one thread each, without nannies."""

    def __init__(self, scheduler: str, folder: Path) -> None:
        self.scheduler = scheduler
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def add(self) -> None:
        words = (
            f"-m distributed.cli.dask_worker {self.scheduler} --no-nanny --nthreads 1 --no-dashboard --memory-limit 0 "
            f"--host 127.0.0.1 --name lone-{len(self._processes)} --local-directory {self._folder}"
        )
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with (self._folder / f"worker-{len(self._processes)}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, *words.split(), "--resources", "GPU=1"], env=environment, stdout=log, stderr=log
                )
            )

    def await_all(self) -> None:
        with Client(self.scheduler) as client:
            client.wait_for_workers(len(self._processes), timeout=120)

    def kill(self, address: str) -> None:
        with Client(self.scheduler) as client:
            (pid,) = client.run(os.getpid, workers=[address]).values()
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with (
        dask.config.set(fork_workers()),
        SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, silence_logs=50) as cluster,
    ):
        found = Workers(cluster.scheduler_address, tmp_path)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    """A job of 60 partitions, and `calm.zarr`: what it writes when nothing disturbs it."""
    bench = make_bench(tmp_path_factory.mktemp("standby"), tiny_model, ROWS)
    api.run(bench.recipe("calm.zarr", input__partition_rows=PARTITION))
    return bench


def slow_down(go: str, seconds: float) -> None:
    """Let every pass through a stage take its time, until it may go on."""
    from daskinfer.models.execution.stage import Stage

    real = Stage.run

    def run(stage: Any, *words: Any) -> Any:
        if not Path(go).exists():
            time.sleep(seconds)
        return real(stage, *words)

    Stage.run = run  # type: ignore[method-assign,assignment]


class Play:
    """A `watch` that does one thing after the other, each when the progress is such that it may be done."""

    def __init__(self, *steps: tuple[Callable[[Progress], bool], Callable[[Progress], object]]) -> None:
        self._steps = list(steps)

    def __call__(self, progress: Progress) -> None:
        if self._steps and self._steps[0][0](progress):
            self._steps.pop(0)[1](progress)

    @property
    def is_over(self) -> bool:
        return not self._steps


def committed(rows: int) -> Callable[[Progress], bool]:
    return lambda progress: progress.phase == "running" and progress.rows_done >= rows


def said(kind: str) -> Callable[[Progress], bool]:
    return lambda progress: progress.message.startswith(kind)


def holder(progress: Progress, stage: int) -> str:
    (found,) = [one.worker for one in progress.workers if one.stages == (stage,)]
    return found


def run(folder: Bench, workers: Workers, name: str, play: Play, **changes: Any) -> Report:
    changes = {"input__partition_rows": PARTITION, "cluster__address": workers.scheduler, **changes}
    report = api.run(folder.recipe(name, **changes), watch=play)
    assert play.is_over
    assert data_bytes(folder.folder / name) == data_bytes(folder.folder / "calm.zarr")
    return report


def kinds(report: Report) -> list[str]:
    return [incident.kind for incident in report.incidents]


def test_the_last_worker_of_a_stage_dies_and_the_job_ends_on_what_is_left(
    folder: Bench, workers: Workers, tmp_path: Path
) -> None:
    for _ in range(2):
        workers.add()
    workers.await_all()
    play = Play((committed(64), lambda progress: workers.kill(holder(progress, 1))))
    report = run(folder, workers, "doubled.zarr", play)
    assert kinds(report) == ["worker-lost", "stage-doubled"]
    # The other worker computed both stages.
    assert report.stages[0].workers[0] == report.stages[1].workers[-1]


def test_who_joins_relieves_the_doubler(folder: Bench, workers: Workers, tmp_path: Path) -> None:
    for _ in range(2):
        workers.add()
    workers.await_all()
    go = tmp_path / "go"
    with Client(workers.scheduler) as client:
        client.run(slow_down, str(go), 0.5)
    play = Play(
        (committed(64), lambda progress: workers.kill(holder(progress, 1))),
        (said("stage-doubled"), lambda progress: workers.add()),
        (said("stage-relieved"), lambda progress: go.touch()),
    )
    report = run(folder, workers, "relieved.zarr", play)
    assert kinds(report) == ["worker-lost", "stage-doubled", "stage-relieved"]
    assert len(set(report.stages[1].workers)) == 3


@pytest.mark.parametrize("stage", [0, 1])
def test_a_standby_takes_over_without_another_load(folder: Bench, workers: Workers, stage: int) -> None:
    for _ in range(3):
        workers.add()
    workers.await_all()

    def is_warm(progress: Progress) -> bool:
        return committed(64)(progress) and any(one.does == "stands by" for one in progress.workers)

    play = Play((is_warm, lambda progress: workers.kill(holder(progress, stage))))
    report = run(folder, workers, f"standby-{stage}.zarr", play, placement__standby=1)
    assert kinds(report) == ["worker-lost", "standby-used"]
    # Who held it first, and the standby: nobody loaded anything after the loss.
    assert [len(each.workers) for each in report.stages] == [2, 2]
    assert report.counters["workers_lost"] == 1


def test_who_joins_becomes_a_replica_of_the_bottleneck(folder: Bench, workers: Workers, tmp_path: Path) -> None:
    for _ in range(2):
        workers.add()
    workers.await_all()
    go = tmp_path / "go"

    def begin(progress: Progress) -> None:
        with Client(workers.scheduler) as client:
            client.run(slow_down, str(go), 3.0, workers=[holder(progress, 1)])
        workers.add()

    play = Play((committed(16), begin), (said("replica-added"), lambda progress: go.touch()))
    report = run(folder, workers, "replica.zarr", play)
    assert kinds(report) == ["replica-added"]
    assert len(report.stages[0].workers) == 1
    assert len(report.stages[1].workers) == 2
