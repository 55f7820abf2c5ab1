"""Results that are lost with their workers, while a store refuses to let them be made again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from daskinfer import api
from daskinfer.runtime.cluster.forking import fork_workers
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


def find_states(step: str, dask_scheduler: Scheduler) -> set[tuple[str, bool]]:
    """Return the states of the tasks of a step, and whether something that they need has failed."""
    return {
        (task.state, any(needed.state == "erred" for needed in task.dependencies))
        for key, task in dask_scheduler.tasks.items()
        if isinstance(key, tuple) and key[1] == step
    }


def find_holders(dask_scheduler: Scheduler) -> tuple[str, str] | None:
    """Return who alone has the rows of a partition, and who computes with a copy of what was made of them."""
    for key, task in dask_scheduler.tasks.items():
        match key:
            case (job, "stage-0", driver, int(generation), int(partition), *_) if task.processing_on is not None:
                read, encode = (
                    dask_scheduler.tasks[job, step, driver, generation, partition, 0] for step in ("read", "encode")
                )
                computes = task.processing_on
                if read.who_has and computes not in read.who_has and computes in (encode.who_has or ()):
                    (has,) = read.who_has
                    return has.address, computes.address
    return None


def wait_for(client: Client, find: Callable[..., Any], accept: Callable[[Any], bool]) -> Any:
    """Return what is found on the scheduler as soon as it is accepted."""
    until = time.monotonic() + 150
    while not accept(found := client.run_on_scheduler(find)):
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


def kill(client: Client, *workers: str) -> None:
    """Kill worker processes; their nannies start others."""
    for process in client.run(os.getpid, workers=list(workers) or None).values():
        os.kill(process, signal.SIGKILL)


def check_run(bench: Bench, held: str, folder: Path, step: str, lose: Callable[[Client], None]) -> None:
    """Run a job whose tasks of a step are held while results are lost; it must not show."""
    api.run(bench.recipe("calm.zarr", cluster__address=held))
    hold = folder / f"hold-{step}"
    hold.touch()

    def lose_results() -> None:
        try:
            with Client(held) as client:
                lose(client)
        finally:
            hold.unlink()

    with ThreadPoolExecutor(1) as threads:
        losing = threads.submit(lose_results)
        report = api.run(bench.recipe("lost.zarr", cluster__address=held, pipeline__window=64))
    losing.result()
    assert any(incident.kind == "storage-refused" for incident in report.incidents)
    assert data_bytes(bench.folder / "lost.zarr") == data_bytes(bench.folder / "calm.zarr")


@contextmanager
def refuse(path: Path) -> Iterator[None]:
    """Let the store refuse a call."""
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.parametrize("what", ["run_stage", "read_partition"])
def test_what_a_commit_needs_is_made_again(bench: Bench, held: str, tmp_path: Path, what: str) -> None:
    def lose(client: Client) -> None:
        commits = partial(find_states, "commit")
        # One is processing as soon as all results of its partition are there.
        wait_for(client, commits, lambda found: ("processing", False) in found)
        with refuse(tmp_path / what):
            kill(client)
            wait_for(client, commits, lambda found: "erred" in dict(found))

    check_run(bench, held, tmp_path, "commit_partition", lose)


def test_a_microbatch_that_waits_for_ever_is_started_again(bench: Bench, held: str, tmp_path: Path) -> None:
    def lose(client: Client) -> None:
        has_rows, computes = wait_for(client, find_holders, bool)
        with refuse(tmp_path / "read_partition"):
            kill(client, has_rows)
            wait_for(client, partial(find_states, "read"), lambda found: "erred" in dict(found))
            kill(client, computes)
            wait_for(client, partial(find_states, "encode"), lambda found: ("waiting", True) in found)

    check_run(bench, held, tmp_path, "run_stage", lose)
