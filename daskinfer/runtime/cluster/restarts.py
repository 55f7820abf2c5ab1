"""Taking a worker off the cluster, so that its nanny starts another."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from distributed import Client, Scheduler
from distributed.core import rpc

_HEARING_SECONDS = 0.1


def restart_worker(client: Client, worker: str) -> None:
    """Take a worker off the cluster at once, and let its nanny kill it and start another.

    A worker without a nanny is told to close, which it hears when it can. One whose nanny cannot be reached finds out by
    its next heartbeat that it is no longer wanted, and closes.

    Examples
    --------
    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> from unittest.mock import Mock
    >>> scheduler = SimpleNamespace(workers={})  # the worker is gone already
    >>> client = Mock(run_on_scheduler=lambda function, worker: asyncio.run(function(worker, scheduler)))
    >>> restart_worker(client, "tcp://a:1")
    """
    client.run_on_scheduler(_restart, worker)


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
