"""A cluster that others use too: workers that a job cannot use are named and left alone, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from distributed import Client
from distributed.core import Server

from daskinfer import api
from daskinfer.errors import DaskinferError, JobFailed, RecipeError
from daskinfer.knobs import ANSWER_SECONDS, PROGRESS_SECONDS
from daskinfer.logs import LogSettings, set_up_logging
from daskinfer.runtime.cluster.scheduler_check import confirm_scheduler
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from tests.e2e.conftest import Bench, daskinfer, make_bench
from tests.e2e.faults import once
from tests.runtime.sharedcluster import SharedCluster, look, shared_cluster, wait_until

if sys.platform != "linux":
    pytest.skip("processes are looked at as Linux shows them", allow_module_level=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedCluster]:
    with shared_cluster(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from daskinfer.testing.models.tinymodels import make_tiny_bert

    folder = tmp_path_factory.mktemp("bench")
    return make_bench(folder, make_tiny_bert(folder / "tiny"), 300)


def recipe(bench: Bench, shared: SharedCluster, name: str) -> Recipe:
    changes: dict[str, Any] = {"cluster__address": shared.address, "pipeline__stages": 1, "input__partition_rows": 16}
    return bench.recipe(name, **changes)


@contextlib.contextmanager
def left_as_found(shared: SharedCluster) -> Iterator[None]:
    """Assert that a cluster is after something what it was before, a moment later at the latest."""
    before = look(shared.address)
    yield
    with contextlib.suppress(AssertionError):
        wait_until(lambda: look(shared.address) == before)
    assert look(shared.address) == before


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Let this driver log, and with it the workers that it uses."""
    set_up_logging(LogSettings(file=str(path)))
    try:
        yield
    finally:
        set_up_logging(None)


def told(lines: list[str], cause: str) -> bool:
    return any("left alone" in line and cause in line for line in lines)


@pytest.mark.slow
@pytest.mark.late
@PROGRESS_SECONDS.override(0.0)
def test_a_job_leaves_nothing_and_a_colleague_works_meanwhile(bench: Bench, shared: SharedCluster) -> None:
    lines: list[str] = []
    worked: list[int] = []
    done_when_told: list[int] = []

    def join() -> None:
        """A worker without daskinfer joins in mid-run, and a colleague computes on it."""
        shared.add_without("colleague")
        with Client(shared.address, timeout=60) as client:
            client.wait_for_workers(4, timeout=120)
            worked.append(client.submit(os.getpid, workers=["colleague"]).result(timeout=120))

    join_once = once(32, join)

    def watch(progress: Progress) -> None:
        lines.append(progress.message)
        if told(lines, "has no daskinfer") and told(lines, "another version of daskinfer (0.0.1"):
            done_when_told.append(progress.rows_done)
        join_once(progress)

    before = look(shared.address)
    report = api.run(recipe(bench, shared, "done.zarr"), watch=watch)
    assert report.rows_out == 300
    assert done_when_told[:1] == [0], "it is told before anything is computed"
    assert worked == [shared.processes["colleague"].pid]
    assert shared.processes["colleague"].is_running()
    colleague = shared.processes.pop("colleague")
    colleague.kill()
    colleague.wait()
    wait_until(lambda: look(shared.address) == before)


@pytest.mark.slow
@pytest.mark.late
@pytest.mark.parametrize("way", ["interrupted", "cancelled"])
@PROGRESS_SECONDS.override(0.0)
def test_a_job_that_is_stopped_leaves_nothing(bench: Bench, shared: SharedCluster, way: str) -> None:
    stopped = recipe(bench, shared, f"{way}.zarr")

    def stop() -> None:
        if way == "interrupted":
            raise KeyboardInterrupt
        (status,) = [each for each in api.jobs(stopped.workspace) if each.state == "running"]
        api.cancel(status.job, stopped.workspace, wait=False)

    with left_as_found(shared), logging_to(bench.folder / "log.txt"), pytest.raises(DaskinferError) as raised:
        api.run(stopped, watch=once(32, stop))
    assert raised.value.exit_code == 130


@pytest.mark.slow
@pytest.mark.late
def test_a_killed_driver_leaves_nothing(bench: Bench, shared: SharedCluster) -> None:
    changed = recipe(bench, shared, "killed.zarr")
    (bench.folder / "killed.yaml").write_text(changed.model_dump_json(exclude_none=True))
    with left_as_found(shared):
        process = daskinfer("run", "killed.yaml", cwd=bench.folder)
        wait_until(lambda: any(bench.folder.glob("killed.zarr/_daskinfer/commits/*/0*.json")))
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.late
def test_a_worker_that_does_not_answer_is_named_and_left_alone(bench: Bench, shared: SharedCluster) -> None:
    shared.add("silent")
    shared.await_workers(4)
    process = shared.processes.pop("silent")
    process.suspend()
    lines: list[tuple[int, str]] = []
    try:
        report = api.run(
            recipe(bench, shared, "silent.zarr"),
            watch=lambda progress: lines.append((progress.rows_done, progress.message)),
        )
    finally:
        process.kill()
        process.wait()
    assert report.rows_out == 300
    assert min(done for done, line in lines if "does not answer" in line) == 0
    assert not [each for each in report.incidents if each.kind in ("worker-frozen", "worker-lost")]


def test_no_worker_that_can_be_used_is_said(tmp_path: Path) -> None:
    from daskinfer.runtime.cluster.admission import Admission

    class Nobody:
        def sync(self, *_: Any) -> dict[str, Any]:
            return {"tcp://a": (None, "ModuleNotFoundError: No module named 'daskinfer'"), "tcp://b": ("0.0.1", None)}

    said: list[str] = []
    with pytest.raises(JobFailed, match="none of the 3 worker"):
        Admission(Nobody(), say=said.append).require(["tcp://a", "tcp://b", "tcp://c"])
    assert [line.split()[1] for line in said] == ["tcp://a", "tcp://b", "tcp://c"]
    assert "no daskinfer" in said[0] and "0.0.1" in said[1] and "does not answer" in said[2]


class _Page(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    """HOST:PORT of a web server."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent_port() -> Iterator[str]:
    """HOST:PORT of somebody who accepts, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield "{}:{}".format(*listener.getsockname())


@pytest.fixture
def other_server() -> Iterator[str]:
    """The address of a process of Dask's that is no scheduler."""
    found: Queue[str] = Queue()
    stop = threading.Event()

    async def serve() -> None:
        server = Server({})
        await server.listen("tcp://127.0.0.1:0")
        found.put(server.address)
        await asyncio.to_thread(stop.wait)
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield found.get(timeout=30)
    stop.set()
    thread.join()


def refused(address: str, kind: type[DaskinferError]) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        confirm_scheduler(address)
    # Dask by itself would try for half a minute.
    assert time.monotonic() - began < 25
    assert raised.value.hint
    return raised.value.message


@ANSWER_SECONDS.override(2.0)
def test_an_address_of_something_else_is_refused_in_time(page: str, silent_port: str, other_server: str) -> None:
    assert "is a Dask server, not a scheduler" in refused(other_server, JobFailed)
    assert "Dask scheduler" in refused(f"tcp://{page}", JobFailed)
    assert "within 2 s" in refused(f"tcp://{silent_port}", JobFailed)
    assert "no Dask scheduler" in refused("tcp://127.0.0.1:1", JobFailed)
    assert "not a usable address" in refused(f"tls://{silent_port}", RecipeError)
    assert "not a usable address" in refused("http://127.0.0.1", RecipeError)
