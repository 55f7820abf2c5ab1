"""The driver: carries out what the core decides, and tells it what happened."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import dask
from distributed import Client, Future

from daskinfer.errors import DaskinferError, Interrupted, JobFailed
from daskinfer.graphs.build import (
    Key,
    TaskGraph,
    commit_graph,
    crew_token,
    forget_graph,
    load_graph,
    microbatch_graph,
    prepare_graph,
    stage_token,
)
from daskinfer.graphs.context import forget_job
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.reporting import LOADING_TOPIC
from daskinfer.runtime.cluster import worker_shapes
from daskinfer.runtime.core import DriverCore
from daskinfer.runtime.errands import Errands
from daskinfer.runtime.keeper import Keeper
from daskinfer.runtime.ledger import Ledger
from daskinfer.runtime.messages import (
    Action,
    Commit,
    Committed,
    Event,
    Fail,
    GenerationOpened,
    GrantToken,
    LoadShard,
    LookAtAlias,
    MicrobatchDone,
    Note,
    OpenGeneration,
    Prepare,
    Prepared,
    Release,
    Retire,
    Seal,
    ShardAck,
    ShardFailed,
    ShardLoaded,
    Step,
    Submit,
    Switch,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.tokens import grant_tokens, verify_restrictions
from daskinfer.runtime.workload import Place
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.reading import partition_source

TICK_SECONDS = 0.25
RESULT_SECONDS = 2
# Reading ahead and committing come before computing: they are short, and computing waits for them.
_PRIORITY_FIRST = 10**9


@dataclass(slots=True)
class _Held:
    """Futures of one open partition; dropping them lets the cluster forget it."""

    rows: Future | None = None
    encoded: Future | None = None
    handoffs: dict[int, Future] = field(default_factory=dict)
    others: list[Future] = field(default_factory=list)


class Driver:
    """Runs one job on one cluster until it is sealed or cannot go on.

    Parameters
    ----------
    client
        Connected to a cluster whose processes are set up.
    core
        The logic.
    ledger
        Sums for progress and report.
    handle
        The job, and what it starts on.
    keeper
        Holds its snapshots.
    table
        Its partitions.
    requires
        Tags that stage tasks ask for beside their token.
    note
        Called with (kind, detail) for every incident.
    pulse
        Called a few times a second.
    """

    def __init__(
        self,
        client: Client,
        core: DriverCore,
        ledger: Ledger,
        handle: JobHandle,
        keeper: Keeper,
        table: PartitionTable,
        requires: dict[str, float],
        note: Callable[[str, str], None],
        pulse: Callable[[], None],
    ) -> None:
        self._client = client
        self._core = core
        self._ledger = ledger
        self._handle = handle
        self._handles = {handle.pin.generation: handle}
        self._table = table
        self._requires = requires
        self._note = note
        self._pulse = pulse
        self._happened: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._lost: list[Callable[[], Event | None]] = []
        self._look_again = 0.0
        self._held: dict[Place, _Held] = {}
        self._errands = Errands(keeper, ledger, self._happened.put)
        self._loads: list[Future] = []
        self._tokens: set[str] = set()
        self._verified: set[int] = set()
        self._sealed = False
        self.running_since: float | None = None

    def run(self) -> None:
        """Run until every partition is committed.

        Raises
        ------
        Interrupted
            The user stopped it.
        DaskinferError
            It cannot go on; everything committed stays.
        """
        self._client.subscribe_topic("all", self._hear)
        self._client.subscribe_topic(LOADING_TOPIC, self._hear_loading)
        try:
            self._perform(self._core.start(worker_shapes(self._client)))
            while not self._sealed:
                self._step()
        except KeyboardInterrupt:
            raise Interrupted("interrupted; everything committed so far stays") from None
        finally:
            self._client.unsubscribe_topic("all")
            self._client.unsubscribe_topic(LOADING_TOPIC)
            self._errands.close()

    def withdraw(self) -> None:
        """Take tasks, tokens and shards of this job back from a cluster that others use."""
        futures = [*self._loads]
        for held in self._held.values():
            futures += [*filter(None, (held.rows, held.encoded)), *held.handoffs.values(), *held.others]
        # Not Client.cancel: forced, it trips over tasks that no client holds and takes the connection down with it.
        for future in futures:
            future.release()
        tokens = [
            crew_token(self._handle),
            *(token for handle in self._handles.values() for token in self._tokens_of(handle)),
        ]
        workers = self._tokens & {worker.address for worker in worker_shapes(self._client)}
        for worker in workers:
            grant_tokens(self._client, worker, dict.fromkeys(tokens, 0))
        for handle in self._handles.values():
            self._client.run(forget_job, handle, workers=list(workers))

    def _step(self) -> None:
        if self._lost and time.monotonic() >= self._look_again:
            for look in self._lost:
                self._happened.put(look)
            self._lost.clear()
            self._look_again = time.monotonic() + TICK_SECONDS
        event: Event | None = Tick()
        try:
            happened = self._happened.get(timeout=TICK_SECONDS)
        except queue.Empty:
            if self._client.status not in ("running", "newly-created"):
                raise JobFailed("the connection to the Dask scheduler is lost") from None
        else:
            event = happened()
        if event is not None:
            if isinstance(event, ShardLoaded):
                self._ledger.add_ack(event.ack)
            elif isinstance(event, Committed):
                self._ledger.add(event.record)
            elif isinstance(event, GenerationOpened):
                self._handles[event.pin.generation] = replace(self._handle, pin=event.pin)
            elif isinstance(event, WorkerLost | ShardFailed):
                self._ledger.loads.drop(event.worker)
            self._perform(self._core.handle(event, time.monotonic()))
        self._pulse()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case LoadShard(stage, worker, generation):
                    self._load(self._handles[generation], stage, worker)
                case GrantToken(stage, worker, generation):
                    self._grant(self._handles[generation], stage, worker)
                case Prepare(partition, attempt, generation):
                    self._prepare(self._handles[generation], partition, attempt)
                case Submit(partition, numbers, attempt, generation):
                    self._submit_microbatches(self._handles[generation], partition, numbers, attempt)
                case Commit(partition, attempt, generation):
                    self._commit(self._handles[generation], partition, attempt)
                case Release(partition, generation):
                    del self._held[generation, partition]
                case LookAtAlias():
                    self._errands.look()
                case OpenGeneration(pin):
                    self._errands.open(pin)
                case Switch(pin, partitions):
                    self._errands.switch(pin, partitions)
                case Retire(generation):
                    self._retire(self._handles.pop(generation))
                case Note(kind, detail):
                    self._note(kind, detail)
                case Seal():
                    self._sealed = True
                case Fail(error):
                    raise error
        if self.running_since is None and self._core.running:
            self.running_since = time.monotonic()

    # Actions

    def _load(self, handle: JobHandle, stage: int, worker: str) -> None:
        generation = handle.pin.generation
        self._ledger.loads.begin(stage, worker)
        graph = load_graph(handle, stage, worker)
        (future,) = self._submit(graph, priority=_PRIORITY_FIRST, workers=[worker])
        self._loads.append(future)

        def settle(future: Future) -> Event:
            if future.status != "finished":
                return ShardFailed(stage, worker, _error_of(future), generation)
            ack = ShardAck(**future.result(RESULT_SECONDS))
            if ack.worker != worker:
                error = JobFailed(f"Dask ran the load of stage {stage} on {ack.worker}")
                return ShardFailed(stage, worker, error, generation)
            return ShardLoaded(ack)

        self._watch(future, settle)

    def _grant(self, handle: JobHandle, stage: int, worker: str) -> None:
        try:
            grant_tokens(self._client, worker, {stage_token(handle, stage): 1, crew_token(handle): 1})
        except OSError:
            return  # it died meanwhile: the scheduler's event follows
        self._tokens.add(worker)

    def _prepare(self, handle: JobHandle, partition: int, attempt: int) -> None:
        graph = prepare_graph(handle, partition_source(self._table, partition), attempt)
        rows, encoded, count = self._submit(graph, priority=_PRIORITY_FIRST - partition)
        generation = handle.pin.generation
        self._held[generation, partition] = _Held(rows, encoded)

        def succeed(future: Future) -> Event:
            return Prepared(partition, future.result(RESULT_SECONDS), generation)

        self._watch(count, self._settle("prepare", (generation, partition), 0, succeed))

    def _submit_microbatches(self, handle: JobHandle, partition: int, numbers: Sequence[int], attempt: int) -> None:
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.encoded is not None
        graph = microbatch_graph(
            handle, len(self._ledger.plan.stages), self._requires, partition, numbers, held.encoded.key, attempt
        )
        futures = self._submit(graph, priority=-partition)
        if place[0] not in self._verified:
            verify_restrictions(self._client, graph.resources, graph.wanted)
            self._verified.add(place[0])
        for number, future in zip(numbers, futures, strict=True):
            held.handoffs[number] = future
            done = MicrobatchDone(partition, number, place[0])
            self._watch(future, self._settle("microbatch", place, number, partial(_give, done)))

    def _commit(self, handle: JobHandle, partition: int, attempt: int) -> None:
        place = (handle.pin.generation, partition)
        held = self._held[place]
        assert held.rows is not None and held.encoded is not None
        handoffs: list[Key] = [held.handoffs[number].key for number in sorted(held.handoffs)]
        graph = commit_graph(handle, partition, held.rows.key, held.encoded.key, handoffs, attempt)
        (future,) = self._submit(graph, priority=2 * _PRIORITY_FIRST - partition)

        def succeed(future: Future) -> Event:
            return Committed(future.result(RESULT_SECONDS), place[0])

        self._watch(future, self._settle("commit", place, 0, succeed))
        held.others.append(future)

    def _retire(self, handle: JobHandle) -> None:
        """Take a generation's shards and tokens off the workers, and give its lock back."""
        for worker in self._tokens & {worker.address for worker in worker_shapes(self._client)}:
            with suppress(OSError):  # it died meanwhile
                grant_tokens(self._client, worker, dict.fromkeys(self._tokens_of(handle), 0))
                # As a task, because it waits for whatever the worker is loading.
                self._loads += self._submit(forget_graph(handle, worker), priority=_PRIORITY_FIRST, workers=[worker])
        self._errands.retire(handle.pin)

    def _tokens_of(self, handle: JobHandle) -> list[str]:
        return [stage_token(handle, stage.index) for stage in self._ledger.plan.stages]

    def _submit(self, graph: TaskGraph, priority: int, workers: list[str] | None = None) -> list[Future]:
        pins: dict[str, Any] = {"resources": partial(_look_up, graph.resources), "priority": priority}
        if workers is not None:
            pins |= {"workers": workers, "allow_other_workers": False}
        with dask.annotate(**pins):
            futures: list[Future] = self._client.get(graph.tasks, list(graph.wanted), sync=False)
        return futures

    # Events

    def _watch(self, future: Future, settle: Callable[[Future], Event | None]) -> None:
        def look() -> Event | None:
            try:
                if future.status in ("finished", "error", "cancelled"):
                    return settle(future)
            except TimeoutError:
                pass
            # It was done, and was lost with its worker before we looked. It is computed again, perhaps on a worker that
            # we have yet to place: look again later, and never wait for it here.
            self._lost.append(look)
            return None

        future.add_done_callback(lambda _: self._happened.put(look))

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

    def _hear(self, event: tuple[float, Any]) -> None:
        _, message = event
        if not isinstance(message, dict):
            return
        address = str(message.get("worker"))
        if message.get("action") == "remove-worker":
            self._happened.put(lambda: WorkerLost(address))
        elif message.get("action") == "add-worker":
            self._happened.put(lambda: self._look_at(address))

    def _hear_loading(self, event: tuple[float, Any]) -> None:
        _, message = event
        if (message["job"], message["epoch"]) == (self._handle.job, self._handle.epoch):
            told = partial(self._ledger.loads.tell, message["stage"], message["worker"], message["bytes"])
            self._happened.put(told)

    def _look_at(self, address: str) -> Event | None:
        shapes = {worker.address: worker for worker in worker_shapes(self._client)}
        return WorkerJoined(shapes[address]) if address in shapes else None


def _give(event: Event, _: Future) -> Event:
    return event


def _look_up(resources: dict[Key, dict[str, float]], key: Key) -> dict[str, float]:
    return resources[key]


def _error_of(future: Future) -> BaseException:
    if future.status == "cancelled":
        return JobFailed(f"the scheduler dropped task {future.key}")
    error: BaseException | None = future.exception(RESULT_SECONDS)
    return error if error is not None else DaskinferError(f"task {future.key} ended as {future.status}")
