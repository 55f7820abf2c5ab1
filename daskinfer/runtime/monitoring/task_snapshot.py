"""What the workers are at, as they tell the scheduler with every heartbeat, and what they lack."""

from __future__ import annotations

from distributed import Client

from daskinfer.graphs.build import find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.cluster.scheduler_state import list_assigned_tasks
from daskinfer.runtime.monitoring.stall_detector import Wait
from daskinfer.runtime.protocol.events import Running


def look_at_tasks(client: Client, handle: JobHandle) -> tuple[Running, list[Wait]]:
    """Return a job's microbatches on the workers, for how long those that run have been running, and what lacks inputs."""
    read = list_assigned_tasks(client, handle.job)
    found = (find_stage_task(handle, *task) for *task, _ in read)
    waits = [Wait(key, worker, holders) for key, worker, _, holders in read if holders]
    return Running(tuple(filter(None, found))), waits
