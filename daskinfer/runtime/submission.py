"""A job's tasks on a cluster: submitted, watched until they end, and let go."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask
from distributed import Client, Future

from daskinfer.errors import ClusterLost, DaskinferError, JobFailed
from daskinfer.graphs.build import (
    Key,
    TaskGraph,
    commit_graph,
    compare_graph,
    forget_graph,
    free_graph,
    load_graph,
    microbatch_graph,
    prepare_graph,
)
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.messages import (
    Committed,
    Compared,
    Event,
    MicrobatchDone,
    Prepared,
    ShardAck,
    ShardFailed,
    ShardLoaded,
    Step,
    TaskFailed,
    describe,
)
from daskinfer.runtime.orders import StoodDown
from daskinfer.runtime.tokens import verify_restrictions
from daskinfer.runtime.workload import Place
from daskinfer.spec.job import CommitRecord
from daskinfer.storage.inputs.reading import PartitionSource

_RESULT_SECONDS = 2
_LOOK_SECONDS = 0.25
# Reading ahead and committing come before computing: they are short, and computing waits for them.
_PRIORITY_FIRST = 10**9

Tell = Callable[[Callable[[], Event | None]], None]
"""Takes a function that gives the event, or raises what ends the run."""


@dataclass(slots=True)
class _Held:
    """Futures of one open partition; dropping them lets the cluster forget it."""

    rows: Future | None = None
    encoded: Future | None = None
    handoffs: dict[int, Future] = field(default_factory=dict)
    others: list[Future] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at a task that is done. No closure: one that puts itself back would keep the result until garbage is collected."""

    future: Future
    settle: Callable[[Future], Event | None]
    lost: list[Callable[[], Event | None]]

    def __call__(self) -> Event | None:
        try:
            if self.future.status in ("finished", "error", "cancelled"):
                return self.settle(self.future)
        except TimeoutError:
            pass
        # It was done, and was lost with its worker before we looked. It is computed again, perhaps on a worker that
        # we have yet to place: look again later, and never wait for it here.
        self.lost.append(self)
        return None


class Submissions:
    """Tasks of one job on one cluster.

    Parameters
    ----------
    client
        Connected to the cluster.
    stages
        How many the plan has.
    requires
        Tags that stage tasks ask for beside their token.
    tell
        Hears of every task that ended, in a thread of the client's.
    """

    def __init__(self, client: Client, stages: int, requires: dict[str, float], tell: Tell) -> None:
        self._client = client
        self._stages = stages
        self._requires = requires
        self._tell = tell
        self._held: dict[Place, _Held] = {}
        self._loads: list[Future] = []
        self._verified: set[int] = set()
        self._attempts = itertools.count()
        self._lost: list[Callable[[], Event | None]] = []
        self._look_again = 0.0

    def load(self, handle: JobHandle, stage: int, worker: str) -> None:
        """Load a stage's shard on a worker: `ShardLoaded` or `ShardFailed`."""
        generation = handle.pin.generation
        graph = load_graph(handle, stage, worker, next(self._attempts))
        (future,) = self._submit(graph, priority=_PRIORITY_FIRST, workers=[worker])
        self._loads.append(future)

        def settle(future: Future) -> Event:
            if future.status != "finished":
                return ShardFailed(stage, worker, _error_of(future), generation)
            ack = ShardAck(**future.result(_RESULT_SECONDS))
            if ack.worker != worker:
                error = JobFailed(f"Dask ran the load of stage {stage} on {ack.worker}")
                return ShardFailed(stage, worker, error, generation)
            return ShardLoaded(ack)

        self._watch(future, settle)

    def forget(self, handle: JobHandle, worker: str) -> None:
        """Free a generation's shard on a worker; as a task, because it waits for whatever the worker is loading."""
        self._loads += self._submit(forget_graph(handle, worker), priority=_PRIORITY_FIRST, workers=[worker])

    def free(self, handles: Sequence[JobHandle], stage: int | None, worker: str) -> None:
        """Free a stage's shards on a worker, or all it has of the job: `StoodDown`."""
        graph = free_graph(handles, stage, worker, next(self._attempts))
        (future,) = self._submit(graph, priority=_PRIORITY_FIRST, workers=[worker])
        self._loads.append(future)
        self._watch(future, partial(_give, StoodDown(worker, stage)))

    def prepare(self, handle: JobHandle, source: PartitionSource, attempt: int) -> None:
        """Read and tokenise a partition: `Prepared` or `TaskFailed`."""
        number, generation = source.partition.number, handle.pin.generation
        graph = prepare_graph(handle, source, attempt)
        rows, encoded, count = self._submit(graph, priority=_PRIORITY_FIRST - number)
        self._held[generation, number] = _Held(rows, encoded)

        def succeed(future: Future) -> Event:
            return Prepared(number, future.result(_RESULT_SECONDS), generation)

        self._watch(count, self._settle("prepare", (generation, number), 0, succeed))

    def compute(self, handle: JobHandle, partition: int, numbers: Sequence[int], attempt: int) -> None:
        """Send microbatches through all stages: `MicrobatchDone` or `TaskFailed` for each."""
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.encoded is not None
        graph = microbatch_graph(handle, self._stages, self._requires, partition, numbers, held.encoded.key, attempt)
        futures = self._submit(graph, priority=-partition)
        if place[0] not in self._verified:
            verify_restrictions(self._client, graph.resources, graph.wanted)
            self._verified.add(place[0])
        for number, future in zip(numbers, futures, strict=True):
            held.handoffs[number] = future
            done = MicrobatchDone(partition, number, place[0])
            self._watch(future, self._settle("microbatch", place, number, partial(_give, done)))

    def commit(self, handle: JobHandle, partition: int, attempt: int) -> None:
        """Put a partition's rows in order, write and commit them: `Committed` or `TaskFailed`."""
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.rows is not None and held.encoded is not None
        handoffs: list[Key] = [held.handoffs[number].key for number in sorted(held.handoffs)]
        graph = commit_graph(handle, partition, held.rows.key, held.encoded.key, handoffs, attempt)
        (future,) = self._submit(graph, priority=2 * _PRIORITY_FIRST - partition)

        def succeed(future: Future) -> Event:
            return Committed(future.result(_RESULT_SECONDS), place[0])

        self._watch(future, self._settle("commit", place, 0, succeed))
        held.others.append(future)

    def compare(
        self, handles: tuple[JobHandle, JobHandle], records: tuple[CommitRecord, CommitRecord], tolerance: float
    ) -> None:
        """Compare a partition's results on two snapshots: `Compared`, or the end of the run."""
        (future,) = self._submit(compare_graph(*handles, records, tolerance), priority=_PRIORITY_FIRST)
        self._loads.append(future)
        partition = records[0].partition

        def settle(future: Future) -> Event:
            if future.status != "finished":
                error = _error_of(future)
                if isinstance(error, DaskinferError):
                    raise error
                raise JobFailed(f"partition {partition} could not be compared: {describe(error)}")
            return Compared(future.result(_RESULT_SECONDS), partition)

        self._watch(future, settle)

    def release(self, place: Place) -> None:
        """Forget everything about a partition, so that nothing of it is ever computed again."""
        del self._held[place]

    def withdraw(self) -> None:
        """Take every task back from the cluster."""
        futures = [*self._loads]
        for held in self._held.values():
            futures += [*filter(None, (held.rows, held.encoded)), *held.handoffs.values(), *held.others]
        # Not Client.cancel: forced, it trips over tasks that no client holds and takes the connection down with it.
        for future in futures:
            future.release()

    def look_again(self) -> None:
        """Look again, now and then, at tasks that were done and were lost before anybody looked."""
        if self._lost and time.monotonic() >= self._look_again:
            while self._lost:
                self._tell(self._lost.pop())
            self._look_again = time.monotonic() + _LOOK_SECONDS

    def _submit(self, graph: TaskGraph, priority: int, workers: list[str] | None = None) -> list[Future]:
        pins: dict[str, Any] = {"resources": partial(_look_up, graph.resources), "priority": priority}
        if workers is not None:
            pins |= {"workers": workers, "allow_other_workers": False}
        with dask.annotate(**pins):
            futures: list[Future] = self._client.get(graph.tasks, list(graph.wanted), sync=False)
        return futures

    def _watch(self, future: Future, settle: Callable[[Future], Event | None]) -> None:
        look = _Look(future, settle, self._lost)
        future.add_done_callback(lambda _: self._tell(look))

    def _settle(
        self, step: Step, place: Place, number: int, succeed: Callable[[Future], Event]
    ) -> Callable[[Future], Event | None]:
        def settle(future: Future) -> Event | None:
            if place not in self._held:
                return None  # committed meanwhile by another attempt
            if future.status != "finished":
                return TaskFailed(step, place[1], number, _error_of(future), place[0])
            return succeed(future)

        return settle


def _give(event: Event, _: Future) -> Event:
    return event


def _look_up(resources: dict[Key, dict[str, float]], key: Key) -> dict[str, float]:
    return resources[key]


def _error_of(future: Future) -> BaseException:
    if future.status == "cancelled":  # never by us: the client lost its scheduler, and all futures with it
        raise ClusterLost(f"the Dask scheduler dropped task {future.key}")
    error: BaseException | None = future.exception(_RESULT_SECONDS)
    return error if error is not None else DaskinferError(f"task {future.key} ended as {future.status}")
