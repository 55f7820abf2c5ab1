"""What a driver leaves on a cluster that others use: nothing, however it ends.

While a driver is connected, the scheduler has a plugin of its own. When the driver takes its leave, or its connection ends
because it was killed, the plugin takes the job's tokens, shards and settings off all workers, and then itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from distributed import Client, Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from daskinfer.graphs.context import forget_driver
from daskinfer.logs import set_up_logging

LEAVE_SECONDS = 5.0
"""How long a worker may take to let go of a job; one that is frozen does so should it wake."""
_LOOK_SECONDS = 0.05
_PREFIX = "daskinfer-cleanup-"


class Cleanup(SchedulerPlugin):
    """Knows what one driver brought, and takes it away.

    Parameters
    ----------
    client
        Id of the driver's client.
    allowed_failures
        What the scheduler's limit was before any driver came.
    """

    def __init__(self, client: str, allowed_failures: int) -> None:
        self.name = name_of(client)
        self.allowed_failures = allowed_failures
        self.job = self.member = self.tokens = ""
        self.workers: set[str] = set()
        self._client = client
        self._leaving: asyncio.Task[None] | None = None

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Take everything away when the driver's connection ends."""
        if client == self._client and self._leaving is None:
            scheduler._ongoing_background_tasks.call_soon(self.leave, scheduler)

    async def leave(self, scheduler: Scheduler) -> None:
        """Take everything away; a second call waits for the first."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave(scheduler))
        await asyncio.shield(self._leaving)

    async def _leave(self, scheduler: Scheduler) -> None:
        try:
            await _wait_for_tasks(scheduler, self.tokens)
            here = [worker for worker in self.workers if worker in scheduler.workers]
            message = {
                "op": "run",
                "function": dumps(leave_worker),
                "kwargs": dumps({"job": self.job, "member": self.member, "tokens": self.tokens}),
                "wait": True,
            }
            calls = (scheduler.broadcast(msg=message, workers=[worker], on_error="ignore") for worker in here)
            # What takes longer goes on by itself.
            await asyncio.wait([asyncio.ensure_future(call) for call in calls] or [_nothing()], timeout=LEAVE_SECONDS)
            forget_tokens(scheduler, self.tokens)
        finally:
            others = [each for each in scheduler.plugins.values() if isinstance(each, Cleanup) and each is not self]
            if not others:
                scheduler.allowed_failures = self.allowed_failures
            with suppress(ValueError):
                scheduler.remove_plugin(self.name)


def _nothing() -> asyncio.Task[None]:
    return asyncio.ensure_future(asyncio.sleep(0))


def name_of(client: str) -> str:
    """Return the name of the plugin of a client's driver."""
    return f"{_PREFIX}{client}"


def arrive(client: Client) -> None:
    """Let the scheduler know of a driver before it brings anything."""
    client.run_on_scheduler(_install, client.id)


def bring(client: Client, workers: Sequence[str] = (), job: str = "", member: str = "", tokens: str = "") -> None:
    """Tell the scheduler what a driver is about to bring: settings of workers, and tokens that begin with `tokens`."""
    client.run_on_scheduler(_note, name_of(client.id), list(workers), job, member, tokens)


def take_leave(client: Client) -> None:
    """Take away what this client's driver brought, and return when it is gone, or soon after."""
    with suppress(TimeoutError):
        client.run_on_scheduler(_take_leave, name_of(client.id), callback_timeout=3 * LEAVE_SECONDS)


async def _install(client: str, dask_scheduler: Scheduler) -> None:
    others = [plugin for plugin in dask_scheduler.plugins.values() if isinstance(plugin, Cleanup)]
    before = min((other.allowed_failures for other in others), default=dask_scheduler.allowed_failures)
    if name_of(client) not in dask_scheduler.plugins:
        dask_scheduler.add_plugin(Cleanup(client, before), name=name_of(client))


async def _note(
    name: str, workers: Sequence[str], job: str, member: str, tokens: str, dask_scheduler: Scheduler
) -> None:
    plugin = dask_scheduler.plugins.get(name)
    if isinstance(plugin, Cleanup):
        plugin.workers |= set(workers)
        if tokens:
            plugin.job, plugin.member, plugin.tokens = job, member, tokens


async def _take_leave(name: str, dask_scheduler: Scheduler) -> None:
    plugin = dask_scheduler.plugins.get(name)
    if isinstance(plugin, Cleanup):
        await plugin.leave(dask_scheduler)


async def leave_worker(job: str, member: str, tokens: str, dask_worker: Worker) -> None:
    """Let a worker forget a driver: its shards, its tokens once no task uses them, and how it logs."""
    total, free = dask_worker.state.total_resources, dask_worker.state.available_resources
    if tokens:
        # A driver that goes on with the job on this worker needs what it finds here.
        if not any(_is_of_other(token, job, tokens) for token in total):
            # A shard that is being loaded is waited for.
            await asyncio.to_thread(forget_driver, job, member)
        # A task that ends gives its tokens back, and would fail without them.
        while any(_uses(task.resource_restrictions, tokens) for task in dask_worker.state.tasks.values()):
            await asyncio.sleep(_LOOK_SECONDS)
        for token in [token for token in total if token.startswith(tokens)]:
            del total[token]
            free.pop(token, None)
        if not isinstance(free, _Available):
            dask_worker.state.available_resources = _Available(free)
    if not any("/crew" in token for token in total):
        set_up_logging(None)


class _Available(dict[str, float]):
    """A worker's free resources. What it does not have, it has none of.

    A task that was on its way when its driver left asks for a token that the worker no longer knows, and a plain dictionary
    would end the worker.
    """

    def __missing__(self, name: str) -> float:
        return 0.0


def forget_tokens(scheduler: Scheduler, tokens: str) -> None:
    """Let the scheduler forget that there ever were resources of these names."""
    if not tokens:
        return
    for worker in scheduler.workers.values():
        for token in [token for token in worker.resources if token.startswith(tokens)]:
            del worker.resources[token]
            worker.used_resources.pop(token, None)
    for token in [token for token in scheduler.resources if token.startswith(tokens)]:
        del scheduler.resources[token]


async def _wait_for_tasks(scheduler: Scheduler, tokens: str) -> None:
    """Wait until no task asks for tokens any more: those of a driver that is gone are forgotten one by one."""
    for _ in range(round(LEAVE_SECONDS / _LOOK_SECONDS)):
        if not tokens or not any(_uses(task.resource_restrictions, tokens) for task in scheduler.tasks.values()):
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _uses(restrictions: dict[str, Any] | None, tokens: str) -> bool:
    return bool(restrictions) and any(token.startswith(tokens) for token in restrictions or ())


def _is_of_other(token: str, job: str, tokens: str) -> bool:
    return token.startswith(f"{job}/") and not token.startswith(tokens)
