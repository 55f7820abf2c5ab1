"""A Dask cluster within this process, to look into, and tests that say in a sentence what has changed in there."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import distributed
import pytest
from dask.task_spec import Task
from distributed import Client, Scheduler, SpecCluster

from daskinfer.graphs.build import Key, TaskGraph
from daskinfer.runtime.cluster import (
    local_cluster,
)

OLDEST, NEWEST = "2026.8.0", "2026.8.0"
"""The versions of dask and distributed that all of this was tested with."""
TAG = "job-0123456789/stage-0"


def relies_on(what: str, module: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a test that fails say in a sentence what has changed, and for whom."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            try:
                test(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - whatever it is, a sentence says what it means
                pytest.fail(
                    f"distributed {distributed.__version__} changes what daskinfer/runtime/cluster/{module}.py relies on "
                    f"(tested with {OLDEST} to {NEWEST}): {what}. Seen: {type(error).__name__}: {error}"
                )

        return run

    return decorate


@contextmanager
def cluster_of_threads() -> Iterator[Client]:
    """Yield a client of a scheduler and two workers, all within this process."""
    within = {"protocol": "inproc://", "dashboard": False}
    settings = within | {"nthreads": 1, "memory_limit": 0, "resources": {"GPU": 1}, "silence_logs": 50}
    worker = {"cls": local_cluster.QuietWorker, "options": settings}
    scheduler = {"cls": local_cluster.QuietScheduler, "options": within | {"port": 0}}
    with (
        SpecCluster(workers={0: worker, 1: worker}, scheduler=scheduler, worker=worker, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


def on_scheduler(client: Client, read: Callable[[Scheduler], Any]) -> Any:
    """Return what a function reads of the scheduler, in its own thread."""

    async def call() -> Any:
        return read(client.cluster.scheduler)

    return client.sync(call)


def wait_until(is_so: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, "what is waited for does not happen"
        time.sleep(0.01)
    return found


def state_of(client: Client, key: Key) -> str | None:
    found: str | None = on_scheduler(client, lambda scheduler: getattr(scheduler.tasks.get(key), "state", None))
    return found


def make_graph(name: str, function: Callable[..., Any], *arguments: Any, tag: str = TAG) -> TaskGraph:
    key: Key = ("job", name, 0)
    return TaskGraph({key: Task(key, function, *arguments)}, (key,), {key: {tag: 1}})


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
