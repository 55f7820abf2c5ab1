"""What the workers are running, as they tell the scheduler with every heartbeat, and what they lack."""

from __future__ import annotations

from distributed import Client

from daskinfer.graphs.build import find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.cluster.scheduler_state import list_assigned_tasks
from daskinfer.runtime.monitoring.stall_detector import Wait
from daskinfer.runtime.protocol.events import Running


def look_at_tasks(client: Client, handle: JobHandle) -> tuple[Running, list[Wait]]:
    """Return a job's microbatches on the workers, for how long those that run have been running, and what lacks inputs.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> task = ("demo", "stage-0", handle.driver, 0, 5, 7, 0), "tcp://b:1", None, frozenset({"tcp://a:1"})
    >>> with patch(f"{__name__}.list_assigned_tasks", return_value=[task]):
    ...     running, waits = look_at_tasks(None, handle)
    >>> waits[0].worker, waits[0].holders
    ('tcp://b:1', frozenset({'tcp://a:1'}))
    """
    read = list_assigned_tasks(client, handle.job)
    found = (find_stage_task(handle, *task) for *task, _ in read)
    waits = [Wait(key, worker, holders) for key, worker, _, holders in read if holders]
    return Running(tuple(filter(None, found))), waits
