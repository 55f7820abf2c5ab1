"""Watching over connected workers: which are silent, whose memory is full, what they run, whom they do not reach.

The scheduler hears a heartbeat of every worker each half second (more seldom where there are many). It is asked about
once a second, in calls that read what it knows anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from distributed import Client

from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.cluster.scheduler_state import look_at_workers
from daskinfer.runtime.monitoring.connectivity import try_links
from daskinfer.runtime.monitoring.heartbeats import LOOK_SECONDS, HeartbeatMonitor
from daskinfer.runtime.monitoring.stall_detector import Stalls
from daskinfer.runtime.monitoring.task_snapshot import look_at_tasks
from daskinfer.runtime.protocol.events import Event

_log = logging.getLogger(__name__)


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

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> ClusterMonitor(Mock(), handle, {"GPU": 1}, frozen=15, tell=print).silence("tcp://a:1") is None
    True
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
        self._stall_detector = Stalls()
        self._tell = tell
        self._guard = threading.Lock()
        self._looked = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="daskinfer-monitor", daemon=True)

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
                look = look_at_workers(self._client, self._requires)
                with self._guard:
                    self._looked = time.monotonic()
                    events = self._watch.take(look)
                running, waits = look_at_tasks(self._client, self._handle)
                seen = {sighting.worker: sighting.last_seen for sighting in look.sightings}
                self._tell_all([*events, running, *self._stall_detector.take(look.at, seen, waits)])
                if self._stall_detector.due:
                    self._tell_all(self._stall_detector.hear(try_links(self._client, self._stall_detector.due)))
            except Exception:  # noqa: BLE001 - a watch that ends would be worse than a look that failed
                _log.debug("a look at the workers failed", exc_info=True)

    def _tell_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._tell(_give(event))


def _give(event: Event) -> Callable[[], Event]:
    return lambda: event
