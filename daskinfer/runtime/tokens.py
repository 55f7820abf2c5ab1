"""Everything that reaches into the scheduler: stage tokens, the kick after granting one, and reading restrictions.

Tokens are resources set at run time. They are named after the job and the stage, not after an address, because a
restarted worker has a new address. `Scheduler.add_resources` does not look at tasks that wait for a resource, so a
token must be followed by a kick; that is internal API of distributed, used here only and tested against its version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client, Scheduler, Worker

from daskinfer.errors import JobFailed
from daskinfer.graphs.build import Key


def grant_tokens(client: Client, worker: str, tokens: Mapping[str, float]) -> None:
    """Give a worker resources, and wake the tasks that waited for them. 0 takes a token back.

    Raises
    ------
    OSError
        The worker cannot be reached.
    """
    client.run(_set_resources, dict(tokens), workers=[worker], on_error="raise")
    client.run_on_scheduler(_kick)


async def _set_resources(tokens: dict[str, float], dask_worker: Worker) -> None:
    await dask_worker.set_resources(**tokens)


async def _kick(dask_scheduler: Scheduler) -> None:
    for worker in list(dask_scheduler.running):
        recommendations = dask_scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
        dask_scheduler.transitions(recommendations, stimulus_id="daskinfer-token")


def verify_restrictions(client: Client, resources: Mapping[Key, Mapping[str, float]]) -> None:
    """Check on the scheduler that tasks kept what pins them to their workers.

    Raises
    ------
    JobFailed
        A task lost its resources: it could have run on any worker, with any weights.
    """
    found = client.run_on_scheduler(_read_restrictions, list(resources))
    for key, wanted in resources.items():
        # A task that has finished and been released already had to be somewhere that was allowed to run it.
        if key in found and found[key] != dict(wanted):
            raise JobFailed(
                f"the scheduler lost the restrictions of task {key}: wanted {dict(wanted)}, found {found[key]}",
                hint="This distributed version drops resource annotations; install one that daskinfer is tested with.",
            )


async def _read_restrictions(keys: Sequence[Key], dask_scheduler: Scheduler) -> dict[Key, Any]:
    tasks = dask_scheduler.tasks
    return {key: dict(tasks[key].resource_restrictions or {}) for key in keys if key in tasks}
