"""What the workers are at, as they tell the scheduler with every heartbeat, and what they lack."""

from __future__ import annotations

import time
from typing import Any

from distributed import Client, Scheduler
from distributed.scheduler import TaskState, WorkerState

from daskinfer.graphs.build import find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.monitoring.stall_detector import Wait
from daskinfer.runtime.protocol.events import Running


def look_at_tasks(client: Client, handle: JobHandle) -> tuple[Running, list[Wait]]:
    """Return a job's microbatches on the workers, for how long those that run have been running, and what lacks inputs."""
    read = client.run_on_scheduler(_read_processing, handle.job)
    found = (find_stage_task(handle, *task) for *task, _ in read)
    waits = [Wait(key, worker, holders) for key, worker, _, holders in read if holders]
    return Running(tuple(filter(None, found))), waits


def _read_processing(job: str, dask_scheduler: Scheduler) -> list[tuple[Any, str, float | None, frozenset[str]]]:
    """Return every task of a job that is assigned to a worker.

    With it the worker, the seconds that it has been running, and the workers that hold what it still has to fetch.
    """
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
