"""Looks at what the workers are at, once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distributed import Client, Scheduler

from daskinfer.graphs.build import StageTask, find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.messages import Event
from daskinfer.runtime.probes import Running

LOOK_SECONDS = 1.0


class Watch:
    """A thread that asks the scheduler, which workers tell with every heartbeat.

    Parameters
    ----------
    client
        Connected to the cluster.
    handle
        The job.
    tell
        Takes a function that gives the event.
    """

    def __init__(self, client: Client, handle: JobHandle, tell: Callable[[Callable[[], Event | None]], None]) -> None:
        self._client = client
        self._handle = handle
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskinfer-watch")
        self._due = 0.0
        self._is_looking = False

    def look(self) -> None:
        """Look, where it is time: `Running`."""
        now = time.monotonic()
        if now < self._due or self._is_looking:
            return
        self._due, self._is_looking = now + LOOK_SECONDS, True
        self._thread.submit(self._look)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown(cancel_futures=True)

    def _look(self) -> None:
        try:
            found = self._client.run_on_scheduler(_read_processing)
        except (OSError, TimeoutError, ValueError):
            return  # the driver hears of a scheduler that is gone by other ways
        finally:
            self._is_looking = False
        tasks = (find_stage_task(self._handle, *task) for task in found)
        running: tuple[StageTask, ...] = tuple(filter(None, tasks))
        self._tell(lambda: Running(running))


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
