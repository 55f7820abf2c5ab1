"""Killing the processes of a running job: it ends by itself or is resumed, and its output is what it would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from daskinfer.storage.jobs.lease import read_heartbeat
from daskinfer.storage.jobs.store import JobStore, list_jobs
from daskinfer.testing.fixtures.workers import find_workers
from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench, run
from tests.e2e.heldworker import held_environment, holding

pytestmark = [pytest.mark.slow, pytest.mark.late]

ROWS, PARTITION = 1_280, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> Bench:
    """A job of 60 partitions, and `calm.zarr`: what it writes when nothing disturbs it."""
    bench = make_bench(tmp_path_factory.mktemp("kills"), tiny_model, ROWS)
    run(bench.recipe("calm.zarr", input__partition_rows=PARTITION), scheduler)
    bench.write_recipe(input__partition_rows=PARTITION, pipeline__activations={"transport": "zarr"})
    return bench


@dataclass(frozen=True)
class Attempt:
    """Runs of the command with one output."""

    bench: Bench
    name: str

    def start(self) -> subprocess.Popen[str]:
        words = ("--set", f"output.url={self.name}", "--set", f"name={self.name.removesuffix('.zarr')}")
        env = held_environment(self.bench.folder)
        return daskinfer("run", "recipe.yaml", *words, "--json", cwd=self.bench.folder, env=env)

    def commits(self) -> dict[str, int]:
        """Return the commit records there are, with the time each was written."""
        found = self.bench.folder.glob(f"{self.name}/_daskinfer/commits/*/*.json")
        return {path.name: path.stat().st_mtime_ns for path in found}

    def computing(self) -> set[str]:
        """Return the workers that compute, by what the driver tells."""
        workspace = str(self.bench.folder / "work")
        begins = f"{self.name.removesuffix('.zarr')}-"
        (job,) = (job for job in list_jobs(workspace) if job.startswith(begins))
        heartbeat = read_heartbeat(JobStore(workspace, job).url)
        shown = heartbeat.progress if heartbeat else None
        return {one.worker for one in shown.workers if one.does == "computes"} if shown else set()

    def assert_calm(self) -> None:
        assert data_bytes(self.bench.folder / self.name) == data_bytes(self.bench.folder / "calm.zarr")
        assert len(self.commits()) == ROWS // PARTITION
        assert not any((self.bench.folder / "work").glob("activations/*"))


def await_until(job: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until a running job is so far."""
    deadline = time.monotonic() + 150
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(job: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for a run to succeed; return what it printed and its report."""
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    printed = json.loads(out.splitlines()[-1])
    return printed, json.loads(Path(printed["report"]).with_suffix(".json").read_text())


def test_killed_workers_are_replaced(folder: Bench) -> None:
    attempt = Attempt(folder, "workers.zarr")
    # Three processes commit so many at most: there is something left to do, however fast they are.
    with holding(folder.folder, "commit_partition", after=8):
        job = attempt.start()
        await_until(job, lambda: len(attempt.commits()) >= 3 and len(attempt.computing()) == 2)
        before = attempt.computing()
        find_workers(job.pid)[0].send_signal(signal.SIGKILL)
        await_until(job, lambda: len(attempt.computing()) == 2 and attempt.computing() != before)
        # Both at once: results that nobody has looked at are lost while no worker may compute them again.
        for worker in find_workers(job.pid):
            worker.send_signal(signal.SIGKILL)
    printed, report = finish(job)
    assert printed["rows_out"] == ROWS
    assert report["counters"]["workers_lost"] == 3
    assert sum(incident["kind"] == "worker-lost" for incident in report["incidents"]) == 3
    attempt.assert_calm()


@pytest.mark.campaign  # the chaos test kills drivers too, and test_identity interrupts them
@pytest.mark.parametrize(
    ("name", "stop", "code"),
    [
        ("killed.zarr", lambda job: job.kill(), -signal.SIGKILL),
        ("interrupted.zarr", lambda job: os.killpg(job.pid, signal.SIGINT), 130),  # as Ctrl-C does in a terminal
        ("terminated.zarr", lambda job: job.terminate(), 130),
    ],
)
def test_a_stopped_driver_is_resumed(
    folder: Bench, name: str, stop: Callable[[subprocess.Popen[str]], None], code: int
) -> None:
    attempt = Attempt(folder, name)
    with holding(folder.folder, "commit_partition", after=10):
        job = attempt.start()
        await_until(job, lambda: len(attempt.commits()) >= 10)
        workers = find_workers(job.pid)
        stop(job)
        out, err = job.communicate(timeout=150)
    assert job.returncode == code, err
    assert "Traceback" not in err
    if code == 130:
        assert "run recipe.yaml" in json.loads(out.splitlines()[-1])["resume"]
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlive their driver"
    before = attempt.commits()
    assert 10 <= len(before) < ROWS // PARTITION

    printed, report = finish(attempt.start())
    assert printed["rows_out"] == ROWS
    after = attempt.commits()
    assert {name: after[name] for name in before} == before, "committed partitions were committed again"
    assert report["partitions_resumed"] == len(before)
    assert report["rows_this_run"] == ROWS - len(before) * PARTITION
    assert report["epoch"] == 2
    attempt.assert_calm()
