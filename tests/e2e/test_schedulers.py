"""Schedulers that are lost in mid-run: the job goes on over a new connection, and its output is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, SpecCluster
from distributed.utils import open_port

from daskinfer import api
from daskinfer.errors import ClusterLost, JobFailed
from daskinfer.runtime.jobs import run_session
from daskinfer.spec.job.report import Report
from tests.e2e.conftest import Bench, data_bytes
from tests.e2e.faults import commits, once

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

SMALL: dict[str, Any] = {"input__partition_rows": 16}


class Processes:
    """A scheduler and two workers, each a process of its own, as a cluster that others run."""

    def __init__(self, folder: Path) -> None:
        self.port = open_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._begin("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        for _ in range(2):
            self._begin(
                *("worker", self.address, "--nthreads", "1", "--resources", "GPU=1", "--memory-limit", "0"),
                *("--no-dashboard", "--preload-nanny", "daskinfer.runtime.cluster.forking"),
            )

    def await_workers(self) -> None:
        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(2)

    def lose_scheduler(self) -> None:
        self._processes[0].kill()

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _begin(self, *words: str) -> None:
        command = [sys.executable, "-m", "dask", *words]
        process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    cluster = Processes(tmp_path)
    cluster.start()
    try:
        cluster.await_workers()
        yield cluster
    finally:
        cluster.stop()


def own_clusters() -> list[SpecCluster]:
    """Return the clusters that jobs of this process have started."""
    return [cluster for cluster in SpecCluster._instances if cluster.name == "daskinfer"]


def calm(bench: Bench, report: Report) -> None:
    """Assert that a report tells of a lost scheduler, and its output of none."""
    assert [incident.kind for incident in report.incidents].count("scheduler-lost") == 1
    assert report.rows_out == report.rows_this_run == 300
    assert len(commits(bench.folder / "out.zarr")) == report.partitions
    api.run(bench.recipe("calm.zarr", **SMALL))
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")
    assert not any((bench.folder / "work").glob("activations/*"))


def test_a_local_cluster_is_started_again(bench: Bench) -> None:
    def lose() -> None:
        (cluster,) = own_clusters()
        cluster.sync(cluster.scheduler.close)

    calm(bench, api.run(bench.recipe(**SMALL), watch=once(32, lose)))


@pytest.mark.campaign  # the chaos test does the same
def test_a_scheduler_that_comes_back_is_connected_to(bench: Bench, processes: Processes) -> None:
    recipe = bench.recipe(**SMALL, cluster__address=processes.address, cluster__local=None)
    calm(bench, api.run(recipe, watch=once(32, processes.restart)))


@pytest.mark.campaign
def test_a_scheduler_that_stays_away(bench: Bench, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_session, "PATIENCE_SECONDS", 1.0)
    recipe = bench.recipe(**SMALL, cluster__address=processes.address, cluster__local=None)
    with pytest.raises(JobFailed, match="no Dask scheduler answers"):
        api.run(recipe, watch=once(32, processes.stop))
    processes.start()
    processes.await_workers()
    assert api.run(recipe).partitions_resumed >= 2


@pytest.mark.campaign
def test_schedulers_that_are_lost_again_and_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_session, "MOST_LOSSES", 1)

    def lose(progress: Any) -> None:
        for cluster in own_clusters():
            if progress.phase == "loading" and cluster.scheduler.status.name == "running":
                cluster.sync(cluster.scheduler.close)

    with pytest.raises(ClusterLost, match="lost"):
        api.run(bench.recipe(**SMALL), watch=lose)
