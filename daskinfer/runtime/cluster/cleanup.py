"""What a driver leaves on a cluster that others use: nothing, however it ends.

While a driver is connected, the scheduler has a plugin of its own. When the driver takes its leave, or its connection ends
because it was killed, the plugin takes the job's tags, shards and settings off all workers, and then itself.
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

    Examples
    --------
    >>> plugin = Cleanup("Client-1", allowed_failures=3)
    >>> plugin.name == name_of("Client-1"), plugin.workers
    (True, set())
    """

    def __init__(self, client: str, allowed_failures: int) -> None:
        self.name = name_of(client)
        self.allowed_failures = allowed_failures
        self.job = self.member = self.tags = ""
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
            await _wait_for_tasks(scheduler, self.tags)
            here = [worker for worker in self.workers if worker in scheduler.workers]
            message = {
                "op": "run",
                "function": dumps(leave_worker),
                "kwargs": dumps({"job": self.job, "member": self.member, "tags": self.tags}),
                "wait": True,
            }
            calls = (scheduler.broadcast(msg=message, workers=[worker], on_error="ignore") for worker in here)
            # What takes longer goes on by itself.
            await asyncio.wait([asyncio.ensure_future(call) for call in calls] or [_nothing()], timeout=LEAVE_SECONDS)
            forget_tags(scheduler, self.tags)
        finally:
            others = [each for each in scheduler.plugins.values() if isinstance(each, Cleanup) and each is not self]
            if not others:
                scheduler.allowed_failures = self.allowed_failures
            with suppress(ValueError):
                scheduler.remove_plugin(self.name)


def _nothing() -> asyncio.Task[None]:
    return asyncio.ensure_future(asyncio.sleep(0))


def name_of(client: str) -> str:
    """Return the name of the plugin of a client's driver.

    Examples
    --------
    >>> name_of("Client-1").endswith("Client-1")
    True
    """
    return f"{_PREFIX}{client}"


def arrive(client: Client) -> None:
    """Let the scheduler know of a driver before it brings anything.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(id="Client-1")
    >>> arrive(client)
    >>> client.run_on_scheduler.call_args.args[1]
    'Client-1'
    """
    client.run_on_scheduler(_install, client.id)


def bring(client: Client, workers: Sequence[str] = (), job: str = "", member: str = "", tags: str = "") -> None:
    """Tell the scheduler what a driver is about to bring: settings of workers, and tags that begin with `tags`.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(id="Client-1")
    >>> bring(client, ["tcp://a:1"], job="demo", tags="demo/")
    >>> client.run_on_scheduler.call_args.args[2:]
    (['tcp://a:1'], 'demo', '', 'demo/')
    """
    client.run_on_scheduler(_note, name_of(client.id), list(workers), job, member, tags)


def take_leave(client: Client) -> None:
    """Take away what this client's driver brought, and return when it is gone, or soon after.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> take_leave(Mock(id="Client-1", run_on_scheduler=Mock(side_effect=TimeoutError)))
    """
    with suppress(TimeoutError):
        client.run_on_scheduler(_take_leave, name_of(client.id), callback_timeout=3 * LEAVE_SECONDS)


async def _install(client: str, dask_scheduler: Scheduler) -> None:
    others = [plugin for plugin in dask_scheduler.plugins.values() if isinstance(plugin, Cleanup)]
    before = min((other.allowed_failures for other in others), default=dask_scheduler.allowed_failures)
    if name_of(client) not in dask_scheduler.plugins:
        dask_scheduler.add_plugin(Cleanup(client, before), name=name_of(client))


async def _note(name: str, workers: Sequence[str], job: str, member: str, tags: str, dask_scheduler: Scheduler) -> None:
    plugin = dask_scheduler.plugins.get(name)
    if isinstance(plugin, Cleanup):
        plugin.workers |= set(workers)
        if tags:
            plugin.job, plugin.member, plugin.tags = job, member, tags


async def _take_leave(name: str, dask_scheduler: Scheduler) -> None:
    plugin = dask_scheduler.plugins.get(name)
    if isinstance(plugin, Cleanup):
        await plugin.leave(dask_scheduler)


async def leave_worker(job: str, member: str, tags: str, dask_worker: Worker) -> None:
    """Let a worker forget a driver: its shards, its tags once no task uses them, and how it logs."""
    total, free = dask_worker.state.total_resources, dask_worker.state.available_resources
    if tags:
        # A driver that goes on with the job on this worker needs what it finds here.
        if not any(_is_of_other(tag, job, tags) for tag in total):
            # A shard that is being loaded is waited for.
            await asyncio.to_thread(forget_driver, job, member)
        # A task that ends gives its tags back, and would fail without them.
        while any(_uses(task.resource_restrictions, tags) for task in dask_worker.state.tasks.values()):
            await asyncio.sleep(_LOOK_SECONDS)
        for tag in [tag for tag in total if tag.startswith(tags)]:
            del total[tag]
            free.pop(tag, None)
        if not isinstance(free, _Available):
            dask_worker.state.available_resources = _Available(free)
    if not any(tag.endswith("/job") for tag in total):
        set_up_logging(None)


class _Available(dict[str, float]):
    """A worker's free resources. What it does not have, it has none of.

    A task that was on its way when its driver left asks for a tag that the worker no longer knows, and a plain dictionary
    would end the worker.
    """

    def __missing__(self, name: str) -> float:
        return 0.0


def forget_tags(scheduler: Scheduler, tags: str) -> None:
    """Let the scheduler forget that there ever were resources of these names.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> scheduler = SimpleNamespace(workers={}, resources={"demo/stage-0": {}, "GPU": {}})
    >>> forget_tags(scheduler, "demo/")
    >>> scheduler.resources
    {'GPU': {}}
    """
    if not tags:
        return
    for worker in scheduler.workers.values():
        for tag in [tag for tag in worker.resources if tag.startswith(tags)]:
            del worker.resources[tag]
            worker.used_resources.pop(tag, None)
    for tag in [tag for tag in scheduler.resources if tag.startswith(tags)]:
        del scheduler.resources[tag]


async def _wait_for_tasks(scheduler: Scheduler, tags: str) -> None:
    """Wait until no task asks for tags any more: those of a driver that is gone are forgotten one by one."""
    for _ in range(round(LEAVE_SECONDS / _LOOK_SECONDS)):
        if not tags or not any(_uses(task.resource_restrictions, tags) for task in scheduler.tasks.values()):
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _uses(restrictions: dict[str, Any] | None, tags: str) -> bool:
    return bool(restrictions) and any(tag.startswith(tags) for tag in restrictions or ())


def _is_of_other(tag: str, job: str, tags: str) -> bool:
    return tag.startswith(f"{job}/") and not tag.startswith(tags)
