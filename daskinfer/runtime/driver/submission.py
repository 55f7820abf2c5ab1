"""A job's tasks on a cluster: submitted, watched until they end, and let go."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from distributed import Client, Future

from daskinfer.errors import DaskinferError, JobFailed
from daskinfer.graphs.build import (
    Key,
    StageTask,
    TaskGraph,
    commit_graph,
    compare_graph,
    free_graph,
    inspect_graph,
    load_graph,
    microbatch_graph,
    prepare_graph,
)
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.cluster.connection import worker_shapes
from daskinfer.runtime.cluster.resource_tags import verify_restrictions
from daskinfer.runtime.cluster.task_submission import submit_tasks
from daskinfer.runtime.driver.partition_futures import RESULT_SECONDS, Look, PartitionFutures, error_of, release
from daskinfer.runtime.protocol.actions import describe
from daskinfer.runtime.protocol.events import (
    Committed,
    Compared,
    Event,
    Inspected,
    MicrobatchDone,
    Prepared,
    ProbeDone,
    ProbeFailed,
    ShardAck,
    ShardFailed,
    ShardLoaded,
    ShardReleased,
    Stranded,
    TaskFailed,
)
from daskinfer.runtime.protocol.keys import PartitionKey, Step
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.storage.inputs.reading import PartitionSource

_LOOK_SECONDS = 0.25
# Reading ahead and committing come before computing: they are short, and computing waits for them.
_PRIORITY_FIRST = 10**9

Tell = Callable[[Callable[[], Event | None]], None]
"""Takes a function that gives the event, or raises what ends the run."""


class Submissions:
    """Tasks of one job on one cluster.

    Parameters
    ----------
    client
        Connected to the cluster.
    stages
        How many the plan has.
    requires
        Tags that stage tasks ask for beside their own.
    tell
        Hears of every task that ended, in a thread of the client's.
    poison
        Rows that microbatches leave out.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> tasks = Submissions(Mock(), stages=2, requires={"GPU": 1}, tell=print)
    >>> list(tasks.look_again())
    []
    """

    def __init__(
        self,
        client: Client,
        stages: int,
        requires: dict[str, float],
        tell: Tell,
        poison: Iterable[PoisonRecord] = (),
    ) -> None:
        self._client = client
        self._stages = stages
        self._requires = requires
        self._tell = tell
        self._held: dict[PartitionKey, PartitionFutures] = {}
        self._loads: list[Future] = []
        self._losers: dict[Key, Future] = {}
        self._poison: dict[PartitionKey, dict[int, PoisonRecord]] = {}
        for poison_record in poison:
            self.leave_out(poison_record)
        self._verified: set[int] = set()
        self._attempts = itertools.count()
        self._lost: list[Callable[[], Event | None]] = []
        self._look_again = 0.0
        self._serial = 0

    def load(self, handle: JobHandle, stage: int, worker: str) -> None:
        """Load a stage's shard on a worker: `ShardLoaded` or `ShardFailed`."""
        generation = handle.pin.generation
        graph = load_graph(handle, stage, worker, next(self._attempts))
        future = self._submit_to(worker, graph)

        def settle(future: Future) -> Event:
            if future.status != "finished":
                return ShardFailed(stage, worker, error_of(future), generation)
            ack = ShardAck(**future.result(RESULT_SECONDS))
            if ack.worker != worker:
                error = JobFailed(f"Dask ran the load of stage {stage} on {ack.worker}")
                return ShardFailed(stage, worker, error, generation)
            return ShardLoaded(ack)

        self._watch(future, settle)

    def free(self, handles: Sequence[JobHandle], stage: int | None, worker: str, is_told: bool = True) -> None:
        """Free a stage's shards on a worker, or all it has of some generations: `ShardReleased`, if that is to be told.

        As a task, because it waits for whatever the worker is loading.
        """
        future = self._submit_to(worker, free_graph(handles, stage, worker, next(self._attempts)))
        if is_told:
            self._watch(future, lambda _: ShardReleased(worker, stage))

    def prepare(self, handle: JobHandle, source: PartitionSource, attempt: int) -> None:
        """Read and tokenise a partition: `Prepared` or `TaskFailed`."""
        number, generation = source.partition.number, handle.pin.generation
        graph = prepare_graph(handle, source, attempt)
        rows, encoded, counted = submit_tasks(self._client, graph, priority=_PRIORITY_FIRST - number)
        held = self._held.setdefault((generation, number), PartitionFutures())
        held.prepare(rows, encoded, counted)

        def succeed(future: Future) -> Event:
            microbatches, nbytes = future.result(RESULT_SECONDS)
            release(future)
            held.counted = None
            return Prepared(number, microbatches, generation, nbytes)

        self._watch(counted, self._settle((generation, number), lambda: held.counted, succeed, "prepare"))

    def compute(self, handle: JobHandle, partition: int, numbers: Sequence[int], attempt: int) -> None:
        """Send microbatches through all stages: `MicrobatchDone` or `TaskFailed` for each."""
        place = (handle.pin.generation, partition)
        held, found = self._held[place], self._poison.get(place, {})
        without = {number: found[number].positions for number in numbers if number in found}
        for number in [number for number in without if len(without[number]) == found[number].of]:
            self._tell(partial(MicrobatchDone, partition, number, place[0]))
            del without[number]
        numbers = [number for number in numbers if number not in found or number in without]
        futures = self._start(handle, partition, numbers, attempt, without) if numbers else []
        for number, future in zip(numbers, futures, strict=True):
            held.drop(number)
            held.handoffs[number] = future
            self._watch_microbatch(place, number, future)

    def compute_twice(self, handle: JobHandle, partition: int, number: int, attempt: int, slow: str) -> None:
        """Send a microbatch through all stages once more, past a worker: the first to finish counts."""
        place = (handle.pin.generation, partition)
        found = self._poison.get(place, {})
        without = {number: found[number].positions} if number in found else {}
        others = [worker.address for worker in worker_shapes(self._client) if worker.address != slow]
        (future,) = self._start(handle, partition, [number], attempt, without, others)
        self._held[place].seconds[number] = future
        self._watch_microbatch(place, number, future)

    def inspect(self, handle: JobHandle, partition: int, number: int) -> None:
        """Find out which rows a microbatch has: `Inspected`, or the end of the run."""
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.encoded is not None
        self._serial += 1
        graph = inspect_graph(handle, partition, number, held.encoded.key, self._serial)
        (future,) = submit_tasks(self._client, graph, priority=_PRIORITY_FIRST)

        def settle(future: Future) -> Event | None:
            newest = held.inspections.get(number)
            if place not in self._held or newest is None or future is not newest:
                return None
            if future.status == "finished":
                positions = future.result(RESULT_SECONDS)
                release(held.inspections.pop(number))
                return Inspected(partition, number, positions, place[0])
            if held.is_stranded(future):
                return self._examine(place)
            error = error_of(future)
            raise JobFailed(f"partition {partition}, microbatch {number} has no rows: {describe(error)}")

        held.inspections[number] = future
        self._watch(future, settle)

    def probe(self, handle: JobHandle, partition: int, number: int, without: tuple[int, ...], attempt: int) -> None:
        """Send a microbatch without some rows through all stages: `ProbeDone` or `ProbeFailed`."""
        place = (handle.pin.generation, partition)
        held = self._held[place]
        held.drop(number)
        (future,) = self._start(handle, partition, [number], attempt, {number: without})
        held.handoffs[number] = future

        def settle(future: Future) -> Event | None:
            newest = held.handoffs.get(number)
            if place not in self._held or newest is None or future is not newest:
                return None
            if future.status == "finished":
                return ProbeDone(partition, number, place[0])
            if held.is_stranded(future):
                return self._examine(place)
            return ProbeFailed(partition, number, error_of(future), place[0])

        self._watch(future, settle)

    def withdraw_microbatch(self, place: PartitionKey, number: int) -> None:
        """Let go of a microbatch's attempts, so that the cluster forgets them."""
        self._held[place].drop(number)

    def leave_out(self, poison_record: PoisonRecord) -> None:
        """Leave rows out of a microbatch from now on; where none is left, there is nothing to hand on."""
        place = (poison_record.generation, poison_record.partition)
        self._poison.setdefault(place, {})[poison_record.microbatch] = poison_record

    def drop_loser(self, task: StageTask) -> None:
        """Let go of an attempt that came in second and is stuck."""
        place = (task.generation, task.partition, task.number, task.attempt)
        for key in [key for key in self._losers if key[3:] == place]:
            release(self._losers.pop(key))

    def commit(self, handle: JobHandle, partition: int, attempt: int) -> None:
        """Put a partition's rows in order, write and commit them: `Committed` or `TaskFailed`."""
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.rows is not None and held.encoded is not None
        handoffs: dict[int, Key] = {number: held.handoffs[number].key for number in sorted(held.handoffs)}
        poison = list(self._poison.get(place, {}).values())
        graph = commit_graph(handle, partition, held.rows.key, held.encoded.key, handoffs, attempt, poison)
        release(held.commit)
        (held.commit,) = submit_tasks(self._client, graph, priority=2 * _PRIORITY_FIRST - partition)

        def succeed(future: Future) -> Event:
            return Committed(future.result(RESULT_SECONDS), place[0])

        self._watch(held.commit, self._settle(place, lambda: held.commit, succeed, "commit"))

    def compare(
        self, handles: tuple[JobHandle, JobHandle], records: tuple[CommitRecord, CommitRecord], tolerance: float
    ) -> None:
        """Compare a partition's results on two snapshots: `Compared`, or the end of the run."""
        (future,) = submit_tasks(self._client, compare_graph(*handles, records, tolerance), priority=_PRIORITY_FIRST)
        self._loads.append(future)
        partition = records[0].partition

        def settle(future: Future) -> Event:
            if future.status != "finished":
                error = error_of(future)
                if isinstance(error, DaskinferError):
                    raise error
                raise JobFailed(f"partition {partition} could not be compared: {describe(error)}")
            return Compared(future.result(RESULT_SECONDS), partition)

        self._watch(future, settle)

    def release(self, place: PartitionKey) -> None:
        """Forget everything about a partition, so that nothing of it is ever computed again."""
        for future in self._held.pop(place).all():
            release(future)
        self._poison.pop(place, None)

    def withdraw(self) -> None:
        """Take every task back from the cluster."""
        futures = [*self._loads, *self._losers.values()]
        for held in self._held.values():
            futures += held.all()
        # Not Client.cancel: forced, it trips over tasks that no client holds and takes the connection down with it.
        for future in futures:
            future.release()

    def look_again(self) -> Iterator[Event]:
        """Look, now and then, at tasks that were done and were lost before anybody looked, and for lost rows."""
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_SECONDS
        while self._lost:
            self._tell(self._lost.pop())
        for place in list(self._held):
            if (event := self._examine(place)) is not None:
                yield event

    def _submit_to(self, worker: str, graph: TaskGraph) -> Future:
        (future,) = submit_tasks(self._client, graph, priority=_PRIORITY_FIRST, workers=[worker])
        self._loads.append(future)
        return future

    def _start(
        self,
        handle: JobHandle,
        partition: int,
        numbers: Sequence[int],
        attempt: int,
        without: dict[int, tuple[int, ...]],
        workers: list[str] | None = None,
    ) -> list[Future]:
        place = (handle.pin.generation, partition)
        encoded = self._held[place].encoded
        assert encoded is not None
        graph = microbatch_graph(
            handle, self._stages, self._requires, partition, numbers, encoded.key, attempt, without
        )
        futures = submit_tasks(self._client, graph, priority=-partition, workers=workers)
        if place[0] not in self._verified:
            verify_restrictions(self._client, graph.resources, graph.wanted)
            self._verified.add(place[0])
        return futures

    def _watch_microbatch(self, place: PartitionKey, number: int, future: Future) -> None:
        """Watch one of at most two attempts: the first to finish counts, the other one is let run to its end."""

        def settle(future: Future) -> Event | None:
            self._losers.pop(future.key, None)
            held = self._held.get(place)
            if held is None or future not in (held.handoffs.get(number), held.seconds.get(number)):
                return None  # committed meanwhile by another attempt, taken back, or it came in second
            second = held.seconds.pop(number, None)
            if future.status != "finished":
                if future is second:
                    return None
                release(second)
                if held.is_stranded(future):
                    return self._examine(place)
                return TaskFailed("microbatch", place[1], number, error_of(future), place[0])
            if second is not None:
                # Held until it ends, so that it is seen should it never end.
                loser = held.handoffs[number] if future is second else second
                self._losers[loser.key] = loser
            held.handoffs[number] = future
            return MicrobatchDone(place[1], number, place[0])

        self._watch(future, settle)

    def _watch(self, future: Future, settle: Callable[[Future], Event | None]) -> None:
        look = Look(future, settle, self._lost)
        future.add_done_callback(lambda _: self._tell(look))

    def _settle(
        self,
        place: PartitionKey,
        find_newest: Callable[[], Future | None],
        succeed: Callable[[Future], Event],
        step: Step,
    ) -> Callable[[Future], Event | None]:
        def settle(future: Future) -> Event | None:
            held, newest = self._held.get(place), find_newest()
            if held is None or newest is None or future is not newest:
                return None  # committed meanwhile by another attempt, or started again
            if future.status == "finished":
                try:
                    return succeed(future)
                except Exception:
                    # Its result may have been lost just now, with its worker, and computing it again have failed.
                    if future.status != "error":
                        raise
            if held.is_stranded(future):
                return self._examine(place)
            lost = tuple(held.lost_handoffs()) if step == "commit" else ()
            return TaskFailed(step, place[1], 0, error_of(future), place[0], lost)

        return settle

    def _examine(self, place: PartitionKey) -> Event | None:
        """Find out whether what a partition is made from is lost, or what is made from rows that were lost before."""
        held = self._held.get(place)
        if held is None:
            return None
        if (error := held.lose_rows()) is not None:
            return TaskFailed("prepare", place[1], 0, error, place[0])
        microbatches, is_commit = held.strand()
        return Stranded(place[1], microbatches, is_commit, place[0]) if microbatches or is_commit else None
