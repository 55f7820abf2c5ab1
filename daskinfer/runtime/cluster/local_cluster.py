"""Worker processes on this machine, with safe settings where Dask's defaults are not, and inaccessible to other users."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster, Status, Worker, system

from daskinfer.errors import JobFailed
from daskinfer.models.limits import memory_limit
from daskinfer.runtime.cluster.fork_server import block_interrupts, worker_environment
from daskinfer.runtime.cluster.forking import fork_workers
from daskinfer.runtime.cluster.security import make_security, private_folder
from daskinfer.spec.recipe import schema as recipes

_HOST = "127.0.0.1"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKER_NAME = "Dask Worker process"


class QuietScheduler(Scheduler):
    """A scheduler without Dask's dashboard, which tells whoever asks what tasks are called and what workers log."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start no HTTP server."""


class QuietWorker(Worker):
    """A worker without the dashboard."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start no HTTP server."""


@contextmanager
def start_workers(
    local: recipes.LocalCluster, tell: Callable[[str], None] = lambda line: None
) -> Iterator[SpecCluster]:
    """Start worker processes, and stop them afterwards.

    Parameters
    ----------
    local
        How many, and with what.
    tell
        Told of a Ctrl-C or SIGTERM that has to wait until they have started.

    Raises
    ------
    JobFailed
        They do not start.
    """
    # What a nanny gives its workers is read when it is made, restarts included, so the settings outlive the start.
    with dask.config.set(_settings(local) | fork_workers()), _without_main():
        try:
            with _waiting_signals(tell) as came, block_interrupts():
                workers = _make_cluster(local)
        except RuntimeError as error:
            raise JobFailed(f"the local workers did not start: {error}") from error
        with workers:
            try:
                for number in came:
                    signal.raise_signal(number)
                yield workers
            finally:
                if workers.scheduler.status != Status.running:
                    # Every worker's nanny wants to sign off from it, and would try for half a minute.
                    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
                        workers.close()


def _make_cluster(local: recipes.LocalCluster) -> SpecCluster:
    security = make_security() if local.tls else None
    closed: dict[str, Any] = {"host": _HOST, "protocol": "tls://" if local.tls else "tcp://", "security": security}
    worker = {
        "nthreads": local.threads,
        "resources": local.resources,
        # What workers are forked from may be older than this job, and know nothing of what was set since.
        "env": {**os.environ, **worker_environment(local)},
        "memory_limit": memory_of_worker(local),
        "worker_class": QuietWorker,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }
    return SpecCluster(
        name="daskinfer",
        scheduler={"cls": QuietScheduler, "options": closed | {"port": 0, "dashboard": False}},
        workers={number: {"cls": Nanny, "options": closed | worker} for number in range(local.workers)},
        security=security,
        silence_logs=logging.CRITICAL,
    )


@contextmanager
def _without_main() -> Iterator[None]:
    """Let no worker run the user's script again, as multiprocessing would have it.

    A script without `if __name__ == "__main__"` would start the job once more in every worker. Nothing of a job is in it.
    """
    prepare = spawn.get_preparation_data

    def prepare_without(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name.startswith(_WORKER_NAME):
            data = {key: value for key, value in data.items() if not key.startswith("init_main")}
        return data

    spawn.get_preparation_data = prepare_without
    try:
        yield
    finally:
        spawn.get_preparation_data = prepare


@contextmanager
def _waiting_signals(tell: Callable[[str], None]) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM wait, and yield those that came: a cluster that is half made cannot be stopped.

    What is blocked for one thread reaches the others, and Python hands it to the main one.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {each: handler for each in _SIGNALS if callable(handler := signal.getsignal(each))}
    for each in before:
        signal.signal(each, lambda number, frame: came.append(number))
    try:
        with _telling(tell):
            yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell of the first of the signals at once, by a thread: Python's own handlers run only when the main one goes on."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in _SIGNALS:
                    tell("interrupted: stopping as soon as the local workers have started")
                    return

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="daskinfer-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()


def memory_of_worker(local: recipes.LocalCluster) -> int:
    """Return the bytes that each local worker may use.

    Examples
    --------
    >>> both, each = (memory_of_worker(recipes.LocalCluster(workers=workers)) for workers in (1, 2))
    >>> both // 2 == each
    True
    """
    # Dask gives no worker more than it reads itself, which counts reservations and the user's own limit too.
    allowed: int = min(memory_limit(), system.memory_limit())
    return allowed // local.workers


def _settings(local: recipes.LocalCluster) -> dict[str, Any]:
    """Return Dask settings without the defaults that slow or break inference."""
    return {
        "temporary-directory": private_folder(),
        "distributed.nanny.pre-spawn-environ": worker_environment(local),
        "distributed.worker.daemon": False,
        # After 15 s by default the cluster gives a dead worker up for good, while its nanny still restarts it: on a busy
        # machine that takes longer.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        # Shards are not Dask's to spill; a worker that runs out of memory should stop and say so.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        "distributed.scheduler.worker-ttl": "60s",
        # An idle worker with Dask's defaults takes a twentieth of a core to watch itself.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.system-monitor.gil.enabled": False,
    }
