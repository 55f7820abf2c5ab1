"""What a task tells its driver while it runs; unheard in processes that no cluster has set up."""

from __future__ import annotations

import time
from collections.abc import Callable

from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.identity import get_identity

LOADING_TOPIC = "daskinfer-loading"
"""One for all jobs, as a scheduler never forgets a topic; messages name their job."""
# Drivers show it a few times a second.
_PAUSE = 0.25

Send = Callable[[str, dict[str, str | int]], object]
"""(topic, message) -> to all who listen."""


def _drop(topic: str, message: dict[str, str | int]) -> None:
    """Send nothing."""


_send: Send = _drop


def set_sender(send: Send) -> None:
    """Tell this process how messages reach drivers.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> with patch.multiple(__name__, _send=_drop, _PAUSE=0):
    ...     set_sender(lambda topic, message: print(topic, message["stage"], message["bytes"]))
    ...     LoadMeter(handle, stage=2).add(1000)
    daskinfer-loading 2 1000
    """
    global _send
    _send = send


class LoadMeter:
    """Counts the bytes of a shard as they come, and tells the driver now and then.

    Parameters
    ----------
    handle
        The job.
    stage
        Number of the stage.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> with patch.multiple(__name__, _send=lambda topic, message: print(message["bytes"]), _PAUSE=0):
    ...     meter = LoadMeter(handle, stage=2)
    ...     meter.add(1000)
    ...     meter.add(500)
    1000
    1500
    """

    def __init__(self, handle: JobHandle, stage: int) -> None:
        self._message: dict[str, str | int] = {"job": handle.job, "epoch": handle.epoch, "stage": stage}
        self._nbytes = 0
        self._due = time.monotonic() + _PAUSE

    def add(self, nbytes: int) -> None:
        """Count bytes that arrived; never called by two threads at once."""
        self._nbytes += nbytes
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _PAUSE
            _send(LOADING_TOPIC, {**self._message, "worker": get_identity(), "bytes": self._nbytes})
