"""What the scheduler knows of its workers and their tasks, read inside the scheduler's process and returned as values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.utils import key_split
from distributed import Client, Scheduler
from distributed.scheduler import TaskState, WorkerState, heartbeat_interval

_REMEMBERED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What the scheduler knows of a worker."""

    worker: str
    last_seen: float
    """When it was last heard of, by the scheduler's clock."""
    paused: bool
    """Whether it takes no new tasks."""
    used: int
    """Bytes that its process holds."""
    limit: int
    """Bytes that it may; 0 for any number."""


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What the scheduler knew at one moment."""

    at: float
    """When that was, by the scheduler's clock."""
    interval: float
    """Seconds between two heartbeats of a worker that is well."""
    sightings: Sequence[WorkerSnapshot]
    """All workers that may hold a stage."""


AssignedTask = tuple[Any, str, float | None, frozenset[str]]
"""Key of a task, its worker, the seconds that it has been running, and the workers that hold what it still has to fetch."""


def identify_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler says of each worker that is connected now.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> identify_workers(Mock(sync=lambda *_, **__: {"workers": {"tcp://a:1": {"nthreads": 2}}}))
    {'tcp://a:1': {'nthreads': 2}}
    """
    # Not `Client.scheduler_info`: it returns what the client last heard, and that is without workers whenever the client
    # has asked for itself in this moment, which it does every two seconds.
    found: dict[str, dict[str, Any]] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return found


def look_at_workers(client: Client, requires: Mapping[str, float]) -> ClusterSnapshot:
    """Return what the scheduler knows of the workers that declare some tags.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from unittest.mock import Mock
    >>> status, metrics = SimpleNamespace(name="paused"), {"memory": 900}
    >>> facts = {"last_seen": 5.0, "status": status, "metrics": metrics, "memory_limit": 1000, "resources": {"GPU": 1}}
    >>> scheduler = SimpleNamespace(workers={"tcp://a:1": SimpleNamespace(**facts)})
    >>> client = Mock(run_on_scheduler=lambda function, requires: function(requires, scheduler))
    >>> look_at_workers(client, {"GPU": 1}).sightings
    [WorkerSnapshot(worker='tcp://a:1', last_seen=5.0, paused=True, used=900, limit=1000)]
    """
    found: ClusterSnapshot = client.run_on_scheduler(_read_workers, dict(requires))
    return found


def list_assigned_tasks(client: Client, job: str) -> list[AssignedTask]:
    """Return every task of a job that is assigned to a worker.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from unittest.mock import Mock
    >>> task = SimpleNamespace(key=("demo", "stage-0", 7), dependencies=())
    >>> worker = SimpleNamespace(last_seen=0.0, executing={}, processing=[task], address="tcp://a:1")
    >>> scheduler = SimpleNamespace(workers={"tcp://a:1": worker})
    >>> list_assigned_tasks(Mock(run_on_scheduler=lambda function, job: function(job, scheduler)), "demo")
    [(('demo', 'stage-0', 7), 'tcp://a:1', None, frozenset())]
    """
    found: list[AssignedTask] = client.run_on_scheduler(_read_processing, job)
    return found


def _read_workers(requires: Mapping[str, float], dask_scheduler: Scheduler) -> ClusterSnapshot:
    # Dask remembers what the last 100,000 keys are called in short: memory that grows with the rows for hours.
    if key_split.cache_info().currsize > _REMEMBERED_KEYS:
        key_split.cache_clear()
    workers = dask_scheduler.workers
    return ClusterSnapshot(
        time.time(),
        heartbeat_interval(len(workers)),
        [
            WorkerSnapshot(
                address,
                state.last_seen,
                state.status.name == "paused",
                int(state.metrics.get("memory", 0)),
                state.memory_limit or 0,
            )
            for address, state in workers.items()
            if all(state.resources.get(tag, 0) >= amount for tag, amount in requires.items())
        ],
    )


def _read_processing(job: str, dask_scheduler: Scheduler) -> list[AssignedTask]:
    now = time.time()
    found = []
    for worker in dask_scheduler.workers.values():
        # A worker whose threads hold the interpreter's lock sends no heartbeats.
        silence = max(0.0, now - worker.last_seen)
        seconds = {task.key: duration + silence for task, duration in worker.executing.items()}
        for task in worker.processing:
            if isinstance(task.key, tuple) and task.key[0] == job:
                holders = frozenset() if task.key in seconds else _find_holders(task, worker)
                found.append((task.key, worker.address, seconds.get(task.key), holders))
    return found


def _find_holders(task: TaskState, worker: WorkerState) -> frozenset[str]:
    lacks = [need.who_has for need in task.dependencies if need.who_has and worker not in need.who_has]
    return frozenset(holder.address for holders in lacks for holder in holders)
