"""Watching over connected workers: which are silent, whose memory is full, what they are at, whom they do not reach.

The scheduler hears a heartbeat of every worker each half second (more seldom where there are many). It is asked about
once a second, in calls that read what it knows anyway.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from dask.utils import key_split
from distributed import Client, Scheduler
from distributed.core import rpc
from distributed.scheduler import heartbeat_interval

from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.monitoring.connectivity import try_links
from daskinfer.runtime.monitoring.stall_detector import Stalls
from daskinfer.runtime.monitoring.task_snapshot import look_at_tasks
from daskinfer.runtime.protocol.events import Event, MemoryPressure, WorkerFrozen, WorkerPaused, WorkerResumed

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PRESSURE = 0.6
"""Share of its memory limit above which a worker is told of."""
# A look that comes late counts for no more than this: it says that the scheduler or the driver was busy, and then
# heartbeats may be waiting to be heard.
_LONGEST_STEP = 2 * LOOK_SECONDS
_HEARTBEATS = 5
_HEARING_SECONDS = 0.1
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


@dataclass(slots=True)
class _Known:
    last_seen: float
    silent: float = 0.0
    told: int = 0
    paused: bool = False


class HeartbeatMonitor:
    """From looks to events, as plain state.

    Parameters
    ----------
    frozen
        Seconds of silence after which a worker is told of, and again after each so many more.
    """

    def __init__(self, frozen: float) -> None:
        self._frozen = frozen
        self._known: dict[str, _Known] = {}
        self._at: float | None = None

    def take(self, look: ClusterSnapshot) -> list[Event]:
        """Return what a look says that is worth telling."""
        step = 0.0 if self._at is None else min(look.at - self._at, _LONGEST_STEP)
        self._at = look.at
        limit = max(self._frozen, _HEARTBEATS * look.interval)
        here = {sighting.worker for sighting in look.sightings}
        self._known = {worker: known for worker, known in self._known.items() if worker in here}
        events: list[Event] = []
        for sighting in look.sightings:
            known = self._known.setdefault(sighting.worker, _Known(sighting.last_seen))
            if sighting.last_seen != known.last_seen:
                known.last_seen, known.silent, known.told = sighting.last_seen, 0.0, 0
            else:
                known.silent += step
            if known.silent >= limit * (known.told + 1):
                known.told += 1
                events.append(WorkerFrozen(sighting.worker, look.at - sighting.last_seen))
            events += self._weigh(known, sighting)
        return events

    def silence(self, worker: str, since_look: float) -> float | None:
        """Return for how long nothing was heard of a worker, `since_look` seconds after the last look."""
        known = self._known.get(worker)
        return None if known is None or self._at is None else self._at - known.last_seen + since_look

    def _weigh(self, known: _Known, sighting: WorkerSnapshot) -> list[Event]:
        events: list[Event] = []
        if sighting.paused and not known.paused:
            events.append(WorkerPaused(sighting.worker, sighting.used, sighting.limit))
        elif known.paused and not sighting.paused:
            events.append(WorkerResumed(sighting.worker))
        known.paused = sighting.paused
        if sighting.paused or 0 < sighting.limit * PRESSURE < sighting.used:
            events.append(MemoryPressure(sighting.worker, sighting.used, sighting.limit, sighting.paused))
        return events


class ClusterMonitor:
    """A thread that looks at the workers; within a `with`.

    Parameters
    ----------
    client
        Connected to their scheduler.
    handle
        The job.
    requires
        Tags that a worker of interest declares.
    frozen
        Seconds of silence after which a worker is told of.
    tell
        Takes a function that gives the event; it is called in this thread.
    """

    def __init__(
        self,
        client: Client,
        handle: JobHandle,
        requires: Mapping[str, float],
        frozen: float,
        tell: Callable[[Callable[[], Event | None]], None],
    ) -> None:
        self._client = client
        self._handle = handle
        self._requires = dict(requires)
        self._watch = HeartbeatMonitor(frozen)
        self._stalls = Stalls()
        self._tell = tell
        self._guard = threading.Lock()
        self._looked = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="daskinfer-vigil", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The thread may hang on a scheduler that is gone: it is not waited for.
        self._stopping.set()

    def silence(self, worker: str) -> float | None:
        """Return for how many seconds nothing was heard of a worker, if it was there at the last look."""
        with self._guard:
            return self._watch.silence(worker, time.monotonic() - self._looked)

    def _keep_looking(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            # Without a connection there is nothing to see; the driver finds that out by itself.
            try:
                look = self._client.run_on_scheduler(_look, self._requires)
                with self._guard:
                    self._looked = time.monotonic()
                    events = self._watch.take(look)
                running, waits = look_at_tasks(self._client, self._handle)
                seen = {sighting.worker: sighting.last_seen for sighting in look.sightings}
                self._tell_all([*events, running, *self._stalls.take(look.at, seen, waits)])
                if self._stalls.due:
                    self._tell_all(self._stalls.hear(try_links(self._client, self._stalls.due)))
            except Exception:  # noqa: BLE001 - a watch that ends would be worse than a look that failed
                _log.debug("a look at the workers failed", exc_info=True)

    def _tell_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._tell(_give(event))


def _give(event: Event) -> Callable[[], Event]:
    return lambda: event


def restart_worker(client: Client, worker: str) -> None:
    """Take a worker off the cluster at once, and let its nanny kill it and start another.

    A worker without a nanny is told to close, which it hears when it can. One whose nanny cannot be reached finds out by
    its next heartbeat that it is no longer wanted, and closes.
    """
    client.run_on_scheduler(_restart, worker)


def _look(requires: Mapping[str, float], dask_scheduler: Scheduler) -> ClusterSnapshot:
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


async def _restart(worker: str, dask_scheduler: Scheduler) -> None:
    state = dask_scheduler.workers.get(worker)
    if state is None:
        return
    nanny = state.nanny
    if nanny is not None:
        # A worker that finds out by a heartbeat that nobody knows it closes its nanny too: it has to hear this before.
        dask_scheduler.worker_send(worker, {"op": "close", "nanny": False, "reason": "daskinfer-restart"})
        await asyncio.sleep(_HEARING_SECONDS)
    # Its tasks go elsewhere first.
    await dask_scheduler.remove_worker(worker, stimulus_id="daskinfer-restart", expected=True, close=nanny is None)
    if nanny is not None:
        dask_scheduler._ongoing_background_tasks.call_soon(_kill, nanny, dask_scheduler.connection_args)


async def _kill(nanny: str, connection_args: dict[str, Any]) -> None:
    with suppress(OSError):  # its host is gone
        async with rpc(nanny, connection_args=connection_args) as remote:
            await remote.kill(reason="daskinfer-restart")
