"""Results that wait for their commit, lost with their workers, while a store refuses to let them be made again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from daskinfer import api
from daskinfer.runtime.forking import fork_workers
from tests.e2e import heldworker
from tests.e2e.conftest import Bench, data_bytes

pytestmark = [pytest.mark.slow, pytest.mark.late]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[str]:
    """The address of two workers that obey files in a folder."""
    environment = {heldworker.VARIABLE: str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"nthreads": 1, "resources": {"GPU": 1}, "memory_limit": 0, "preload": [heldworker.__file__]}
    workers = {number: {"cls": Nanny, "options": {**options, "env": environment}} for number in range(2)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}}
    with (
        dask.config.set(fork_workers()),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


def find_commits(dask_scheduler: Scheduler) -> set[str]:
    """Return the states of commits: one is processing as soon as all results of its partition are there."""
    return {task.state for key, task in dask_scheduler.tasks.items() if isinstance(key, tuple) and key[1] == "commit"}


@pytest.mark.parametrize("what", ["run_stage", "read_partition"])
def test_what_a_commit_needs_is_made_again(bench: Bench, held: str, tmp_path: Path, what: str) -> None:
    api.run(bench.recipe("calm.zarr", cluster__address=held))
    (tmp_path / "hold").touch()

    def lose_results() -> None:
        with Client(held) as client:
            while "processing" not in client.run_on_scheduler(find_commits):
                time.sleep(0.05)
            (tmp_path / what).touch()
            for process in client.run(os.getpid).values():
                os.kill(process, signal.SIGKILL)
            while "erred" not in client.run_on_scheduler(find_commits):
                time.sleep(0.05)
        (tmp_path / what).unlink()
        (tmp_path / "hold").unlink()

    thread = threading.Thread(target=lose_results)
    thread.start()
    report = api.run(bench.recipe("lost.zarr", cluster__address=held))
    thread.join()
    assert any(incident.kind == "storage-refused" for incident in report.incidents)
    assert data_bytes(bench.folder / "lost.zarr") == data_bytes(bench.folder / "calm.zarr")
