"""Runs on workers that wait in the background: the same bytes, and nothing of one run is left for the next."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench
from tests.e2e.faults import commits
from tests.e2e.heldworker import held_environment, holding

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.timeout(400)]

PARTITION = 50
ROWS = 8 * PARTITION


class Typed:
    """Commands typed in the folder of a bench, whose background cluster is nobody else's."""

    def __init__(self, bench: Bench, sockets: Path) -> None:
        self.folder = bench.folder
        self.sockets = sockets
        self._env = {"XDG_RUNTIME_DIR": str(sockets)} | held_environment(bench.folder)

    def start(self, *words: str, cwd: Path | None = None) -> Any:
        return daskinfer(*words, cwd=cwd or self.folder, env=self._env)

    def call(self, *words: str, code: int = 0, cwd: Path | None = None) -> Any:
        """Return the JSON that a command ends with."""
        job = self.start(*words, "--json", cwd=cwd)
        out, err = job.communicate(timeout=170)
        assert job.returncode == code, err
        return json.loads(out.splitlines()[-1]), err

    def run(self, name: str, *words: str, cwd: Path | None = None) -> tuple[dict[str, Any], str]:
        changes = ("--set", f"output.url={self.folder / name}", "--set", f"name={name.partition('.')[0]}")
        found: tuple[dict[str, Any], str] = self.call(
            "run", str(self.folder / "recipe.yaml"), *changes, *words, cwd=cwd
        )
        assert found[0]["code"] == 0, found
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("cluster", "status")[0]
        return found

    def await_state(self, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while (found := self.status())["state"] != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found


@pytest.fixture
def typed(tmp_path: Path, short_folder: Path, tiny_model: Path) -> Iterator[Typed]:
    bench = make_bench(tmp_path, tiny_model, ROWS)
    bench.write_recipe(
        input__partition_rows=PARTITION,
        pipeline__activations={"transport": "zarr"},
        cluster__local={"workers": 2, "threads": 1},
    )
    typed = Typed(bench, short_folder)
    yield typed
    typed.call("cluster", "stop", "--now")


def workers_of(status: dict[str, Any]) -> list[psutil.Process]:
    """Return the forked workers: the children of the process that they are forked from."""
    return [
        worker
        for child in psutil.Process(status["pid"]).children()
        for worker in child.children()
        if "forkserver" in " ".join(child.cmdline())
    ]


def await_commits(output: Path, job: Any) -> None:
    deadline = time.monotonic() + 150
    while not commits(output):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_runs_on_workers_that_wait(typed: Typed) -> None:
    _, err = typed.run("calm.zarr")
    assert "background" not in err
    assert typed.call("cluster", "status")[0] is None
    assert typed.call("cluster", "stop")[0] == {"stopped": False}

    started, _ = typed.call("cluster", "start", "recipe.yaml")
    assert (started["state"], started["local"]["workers"]) == ("ready", 2)
    again, _ = typed.call("cluster", "start", "recipe.yaml", code=2)
    assert "is there already" in again["error"]
    for data in (b"[]\n", b"null\n", b'{"ask": "take"}\n', b'{"ask": "dance"}\n', b"[" * 100_000 + b"\n", b""):
        send(typed.sockets, data)
    assert "Traceback" not in next(typed.sockets.glob("daskinfer-*/background.log")).read_text()

    forked = workers_of(started)
    typed.run("one.zarr")
    assert data_bytes(typed.folder / "one.zarr") == data_bytes(typed.folder / "calm.zarr")
    ready = typed.await_state("ready")
    assert ready["runs"] == 1
    assert not {each.pid for each in forked} & {each.pid for each in workers_of(ready)}, "no process serves two runs"

    # What it was not started for.
    for words, where, why in (
        (("--set", "cluster.local.workers=3"), None, "since it was started, these have changed: workers"),
        ((), Path("/"), "since it was started, these have changed: the working directory"),
    ):
        name = f"other-{len(words)}.zarr"
        _, err = typed.run(name, *words, cwd=where)
        assert f"the background cluster is not used: {why}" in err
        assert data_bytes(typed.folder / name) == data_bytes(typed.folder / "calm.zarr")
    assert typed.status()["runs"] == 1
    assert typed.call("cluster", "stop")[0] == {"stopped": True}
    again, _ = typed.call("cluster", "start", "recipe.yaml")
    assert again["pid"] != started["pid"] and typed.call("cluster", "stop")[0] == {"stopped": True}
    assert not [each for each in forked if each.is_running()]


@pytest.mark.parametrize("end", ["kill", "kill the cluster", pytest.param("stop --now", marks=pytest.mark.campaign)])
def test_whatever_ends_in_the_middle(typed: Typed, end: str) -> None:
    typed.run("calm.zarr")
    typed.call("cluster", "start", "recipe.yaml", "--idle-minutes", "5")
    words = ("--set", f"output.url={typed.folder / 'out.zarr'}", "--set", "name=out", "--json")
    with holding(typed.folder, "commit_partition", after=1):
        job = typed.start("run", "recipe.yaml", *words)
        await_commits(typed.folder / "out.zarr", job)
        status = typed.status()
        assert (status["state"], status["user"]) == ("in use", job.pid)
        refused, _ = typed.call("cluster", "stop", code=2)
        assert f"process {job.pid} uses it" in refused["error"]
        used = workers_of(status)
        assert len(used) == 2
        if end == "kill":
            job.kill()
        elif end == "stop --now":
            typed.call("cluster", "stop", "--now")
        else:
            os.kill(status["pid"], 9)
    out, err = job.communicate(timeout=170)
    if end == "kill":
        ready = typed.await_state("ready")
        assert ready["runs"] == 1
        assert not {each.pid for each in used} & {each.pid for each in workers_of(ready)}
        resumed, _ = typed.run("out.zarr")
        assert resumed["rows_out"] == ROWS and typed.await_state("ready")["runs"] == 2
    else:
        assert job.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["rows_out"] == ROWS
        assert typed.status() is None
    assert data_bytes(typed.folder / "out.zarr") == data_bytes(typed.folder / "calm.zarr")
    _, alive = psutil.wait_procs(used, timeout=60)
    assert not alive


def send(folder: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / f"daskinfer-{os.getuid()}/background.sock"))
        connection.sendall(data)


def test_interrupted_while_it_starts(typed: Typed) -> None:
    job = typed.start("cluster", "start")
    deadline = time.monotonic() + 120
    while typed.call("cluster", "status")[0] is None:
        assert job.poll() is None and time.monotonic() < deadline
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=60)
    if job.returncode == 130:  # else it was ready a moment before
        assert "Traceback" not in err
        while typed.call("cluster", "status")[0] is not None:
            assert time.monotonic() < deadline


def test_it_ends_when_nobody_comes(typed: Typed) -> None:
    started, _ = typed.call("cluster", "start", "--idle-minutes", "0.1")
    deadline = time.monotonic() + 120
    while psutil.pid_exists(started["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert typed.call("cluster", "status")[0] is None
