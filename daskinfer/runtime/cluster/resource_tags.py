"""Resource tags that are set at run time, the kick after granting one, and what tasks ask for, as the scheduler has it.

They are named after the job and the stage, not after an address, because a restarted worker has a new address.
`Scheduler.add_resources` does not look at tasks that wait for a resource, so a tag must be followed by a kick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client, Scheduler, Worker

from daskinfer.errors import JobFailed
from daskinfer.graphs.build import Key
from daskinfer.runtime.cluster.worker_calls import call_workers

_INTAKE_SECONDS = 30.0
ANSWER_SECONDS = 2.0
"""How long a worker may take to answer: one that is frozen never does, and must not keep the driver waiting."""


def grant_tags(client: Client, worker: str, tags: Mapping[str, float]) -> None:
    """Give a worker resources, and wake the tasks that waited for them. 0 takes a tag back.

    Raises
    ------
    TimeoutError
        The worker does not answer. It hears of the resources should it wake, and the tasks are not woken.
    OSError
        The worker cannot be reached.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> with patch(f"{__name__}.call_workers") as call:
    ...     grant_tags(Mock(), "tcp://a:1", {"demo/stage-0": 1})
    >>> call.call_args.args[-1]
    {'demo/stage-0': 1}
    """
    call_workers(client, [worker], ANSWER_SECONDS, _set_resources, dict(tags))
    client.run_on_scheduler(_kick)


def close_tags(client: Client, closing: Sequence[tuple[str, Sequence[str], bool]]) -> list[bool | None]:
    """Give workers no new tasks that ask for a tag, and tell whether they have finished those that they had.

    Only the scheduler is told: a worker that had its tag taken would keep the tasks that it was assigned for ever.

    Parameters
    ----------
    client
        Any client of the cluster.
    closing
        (worker, tags, whether results that only it holds count as work that is not finished).

    Returns
    -------
    list of bool or None
        For each, whether it has finished; None where the worker is gone.

    Examples
    --------
    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> from unittest.mock import Mock
    >>> worker = SimpleNamespace(resources={"demo/stage-0": 1}, processing=())
    >>> scheduler = SimpleNamespace(workers={"tcp://a:1": worker}, resources={})
    >>> client = Mock(run_on_scheduler=lambda function, closing: asyncio.run(function(closing, scheduler)))
    >>> close_tags(client, [("tcp://a:1", ["demo/stage-0"], False), ("tcp://b:1", ["demo/stage-0"], False)])
    [True, None]
    """
    found: list[bool | None] = client.run_on_scheduler(_close_tags, list(closing))
    return found


async def _close_tags(
    closing: Sequence[tuple[str, Sequence[str], bool]], dask_scheduler: Scheduler
) -> list[bool | None]:
    found: list[bool | None] = []
    for worker, tags, with_results in closing:
        state = dask_scheduler.workers.get(worker)
        if state is None:
            found.append(None)
            continue
        for tag in tags:
            state.resources[tag] = 0
            dask_scheduler.resources.setdefault(tag, {})[worker] = 0
        tasks = set(state.processing)
        if with_results:
            tasks |= {task for task in state.has_what if len(task.who_has or ()) == 1}
        found.append(not any(task.resource_restrictions and task.resource_restrictions.keys() & tags for task in tasks))
    return found


async def _set_resources(tags: dict[str, float], dask_worker: Worker) -> None:
    await dask_worker.set_resources(**tags)


async def _kick(dask_scheduler: Scheduler) -> None:
    for worker in list(dask_scheduler.running):
        recommendations = dask_scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
        dask_scheduler.transitions(recommendations, stimulus_id="daskinfer-tag")


def verify_restrictions(client: Client, resources: Mapping[Key, Mapping[str, float]], held: Sequence[Key]) -> None:
    """Check on the scheduler that tasks kept what pins them to their workers.

    Parameters
    ----------
    client
        The one that submitted them.
    resources
        What each of them must ask for.
    held
        Those that the client holds futures of, so that the scheduler cannot have forgotten them.

    Raises
    ------
    JobFailed
        A task lost its resources: it could have run on any worker, with any weights.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> key = ("demo", "stage-0", 7)
    >>> verify_restrictions(Mock(run_on_scheduler=lambda *_: {key: {"GPU": 1}}), {key: {"GPU": 1}}, [key])
    >>> verify_restrictions(Mock(run_on_scheduler=lambda *_: {key: {}}), {key: {"GPU": 1}}, [key])
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobFailed: the scheduler lost the restrictions of task ('demo', 'stage-0', 7): ...
    """
    found = client.run_on_scheduler(_read_restrictions, list(resources), list(held))
    if missing := [key for key in held if key not in found]:
        raise JobFailed(f"the scheduler has not taken in task {missing[0]} within {_INTAKE_SECONDS:.0f} s")
    for key, wanted in resources.items():
        # A task that has finished and been released already had to be somewhere that was allowed to run it.
        if key in found and found[key] != dict(wanted):
            raise JobFailed(
                f"the scheduler lost the restrictions of task {key}: wanted {dict(wanted)}, found {found[key]}",
                hint="This distributed version drops resource annotations; install one that daskinfer is tested with.",
            )


async def _read_restrictions(keys: Sequence[Key], held: Sequence[Key], dask_scheduler: Scheduler) -> dict[Key, Any]:
    tasks = dask_scheduler.tasks

    def is_known(key: Key) -> bool:
        # A key that is only desired by a client has a task without anything to run.
        return key in tasks and tasks[key].run_spec is not None

    # The scheduler unpacks a graph in the background: tasks that are not there yet prove nothing.
    deadline = time.monotonic() + _INTAKE_SECONDS
    while not all(map(is_known, held)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return {key: dict(tasks[key].resource_restrictions or {}) for key in keys if is_known(key)}
