"""What the cluster tells a driver unasked: workers that come and go, and how far their loads are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from distributed import Client

from daskinfer.graphs.build import find_stage_task
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.reporting import LOADING_TOPIC
from daskinfer.runtime.cluster.scheduler_topics import hear_topic, hear_workers
from daskinfer.runtime.driver.shard_loading import ShardLoading
from daskinfer.runtime.protocol.events import Event, WorkerJoined, WorkerLost
from daskinfer.spec.plan import WorkerShape


@contextmanager
def listen(
    client: Client,
    handle: JobHandle,
    loads: ShardLoading,
    measure: Callable[[Client, list[str]], list[WorkerShape]],
    tell: Callable[[Callable[[], Event | None]], None],
) -> Iterator[Callable[[str], Event | None]]:
    """Hear what happens on a cluster.

    Parameters
    ----------
    client
        Connected to it.
    handle
        The job.
    loads
        Told of the job's shards on their way.
    measure
        Gives the shapes of workers.
    tell
        Takes a function that gives the event, if there is one; it is called in a thread of the client's.

    Yields
    ------
    callable
        Looks at a worker: it has joined, or is gone again.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> measure = lambda client, names: map(make_worker, names)
    >>> with patch(f"{__name__}.hear_workers"), patch(f"{__name__}.hear_topic"):
    ...     with listen(None, handle, ShardLoading([1000]), measure, print) as look_at:
    ...         look_at("tcp://a:1").worker.address
    'tcp://a:1'
    """

    def look_at(address: str) -> Event | None:
        try:
            shapes = {worker.address: worker for worker in measure(client, [address])}
        except OSError:
            return None  # it is gone again
        return WorkerJoined(shapes[address]) if address in shapes else None

    def lose(address: str, keys: Sequence[object]) -> None:
        tasks = tuple(filter(None, (find_stage_task(handle, key, address) for key in keys)))
        tell(lambda: WorkerLost(address, tasks=tasks))

    def hear_loading(message: dict[str, Any]) -> None:
        if (message["job"], message["epoch"]) == (handle.job, handle.epoch):
            tell(partial(loads.tell, message["stage"], message["worker"], message["bytes"]))

    with (
        hear_workers(client, lambda address: tell(partial(look_at, address)), lose),
        hear_topic(client, LOADING_TOPIC, hear_loading),
    ):
        yield look_at
