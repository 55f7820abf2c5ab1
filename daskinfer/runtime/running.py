"""What the workers are at, as they tell the scheduler with every heartbeat."""

from __future__ import annotations

import time
from typing import Any

from distributed import Client, Scheduler

from daskinfer.graphs.build import find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.probes import Running


def look_at_tasks(client: Client, handle: JobHandle) -> Running:
    """Return a job's microbatches on the workers, and for how long those that run have been running."""
    found = (find_stage_task(handle, *task) for task in client.run_on_scheduler(_read_processing))
    return Running(tuple(filter(None, found)))


def _read_processing(dask_scheduler: Scheduler) -> list[tuple[Any, str, float | None]]:
    """Return every task assigned to a worker, with the worker, and the seconds that it has been running."""
    now = time.time()
    found = []
    for worker in dask_scheduler.workers.values():
        # A worker whose threads hold the interpreter's lock sends no heartbeats.
        silence = max(0.0, now - worker.last_seen)
        seconds = {task.key: duration + silence for task, duration in worker.executing.items()}
        found += [(task.key, worker.address, seconds.get(task.key)) for task in worker.processing]
    return found
