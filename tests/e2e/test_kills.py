"""Killing the processes of a running job: it ends by itself or is resumed, and its output is what it would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Bench, daskinfer, data_bytes, run, write_rows

pytestmark = pytest.mark.slow

ROWS, PARTITION = 2_400, 32


@pytest.fixture
def long_job(bench: Bench, scheduler: str) -> Bench:
    """A job of 75 partitions, and `calm.zarr`: what it writes when nothing disturbs it."""
    write_rows(bench.folder / "in.jsonl", ROWS)
    run(bench.recipe("calm.zarr", input__partition_rows=PARTITION), scheduler)
    bench.write_recipe(input__partition_rows=PARTITION, pipeline__activations={"transport": "zarr"})
    return bench


def start(bench: Bench) -> subprocess.Popen[str]:
    return daskinfer("run", "recipe.yaml", "--json", cwd=bench.folder)


def commits(bench: Bench) -> dict[str, int]:
    """Return the commit records there are, with the time each was written."""
    return {path.name: path.stat().st_mtime_ns for path in bench.folder.glob("out.zarr/_daskinfer/commits/*/*.json")}


def await_commits(bench: Bench, job: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while len(commits(bench)) < count:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a driver."""
    found = psutil.Process(job.pid).children(recursive=True)
    return [process for process in found if "spawn_main" in " ".join(process.cmdline())]


def finish(job: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, object], str]:
    out, err = job.communicate(timeout=170)
    assert job.returncode == code, err
    return json.loads(out.splitlines()[-1]), err


def assert_calm(bench: Bench) -> None:
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")
    assert len(commits(bench)) == ROWS // PARTITION
    assert not (bench.folder / "work/activations").exists() or not any((bench.folder / "work/activations").iterdir())


def test_a_killed_worker_of_each_stage_is_replaced(long_job: Bench) -> None:
    job = start(long_job)
    await_commits(long_job, job, 3)
    first, second = workers_of(job)
    first.send_signal(signal.SIGKILL)
    await_commits(long_job, job, 20)
    second.send_signal(signal.SIGKILL)
    result, _ = finish(job)
    assert result["rows_out"] == ROWS
    report = json.loads(Path(str(result["report"])).with_suffix(".json").read_text())
    assert report["counters"]["workers_lost"] == 2
    assert {incident["kind"] for incident in report["incidents"]} >= {"worker-lost"}
    assert_calm(long_job)


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        pytest.param(lambda job: job.kill(), -signal.SIGKILL, id="kill -9 of the driver"),
        pytest.param(lambda job: os.killpg(job.pid, signal.SIGINT), 130, id="ctrl-c in the terminal"),
        pytest.param(lambda job: job.terminate(), 130, id="kill of the driver"),
    ],
)
def test_a_stopped_driver_is_resumed(long_job: Bench, stop: Callable[[subprocess.Popen[str]], None], code: int) -> None:
    job = start(long_job)
    await_commits(long_job, job, 10)
    workers = workers_of(job)
    stop(job)
    out, err = job.communicate(timeout=60)
    assert job.returncode == code, err
    if code == 130:
        assert "recipe.yaml" in json.loads(out.splitlines()[-1])["resume"]
        assert "Traceback" not in err
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "workers outlive their driver"
    before = commits(long_job)
    assert 10 <= len(before) < ROWS // PARTITION

    result, err = finish(start(long_job))
    assert result["rows_out"] == ROWS
    after = commits(long_job)
    assert {name: after[name] for name in before} == before, "committed partitions were committed again"
    report = json.loads(Path(str(result["report"])).with_suffix(".json").read_text())
    assert report["partitions_resumed"] == len(before)
    assert report["rows_this_run"] == ROWS - len(before) * PARTITION
    assert report["epoch"] == 2
    assert_calm(long_job)
