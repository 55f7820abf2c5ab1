"""The driver: carries out what the core decides, and tells it what happened."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from distributed import Client
from distributed.comm import CommClosedError

from daskinfer.errors import ClusterLost, DaskinferError, Interrupted
from daskinfer.graphs.build import crew_token, stage_token, token_prefix
from daskinfer.graphs.handoff import JobHandle
from daskinfer.planning.comparison import merge_parts
from daskinfer.runtime.cluster.admission import Admission
from daskinfer.runtime.cluster.cleanup import bring
from daskinfer.runtime.cluster.connection import measure_workers, worker_shapes
from daskinfer.runtime.cluster.resource_tags import grant_tokens
from daskinfer.runtime.cluster.restarts import restart_worker
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.driver.control_requests import ControlRequests
from daskinfer.runtime.driver.drains import Departures
from daskinfer.runtime.driver.event_log import narrate
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.driver.scheduler_events import listen
from daskinfer.runtime.driver.storage_requests import StorageRequests
from daskinfer.runtime.driver.submission import Submissions
from daskinfer.runtime.monitoring.monitor import ClusterMonitor
from daskinfer.runtime.protocol.actions import (
    Abandon,
    Action,
    Adopt,
    Answer,
    ClaimBlocks,
    Commit,
    Compare,
    Fail,
    GrantToken,
    IncidentRecord,
    Inspect,
    Judge,
    LoadShard,
    LookAtAlias,
    OpenGeneration,
    Prepare,
    Probe,
    RecordPoison,
    Recovered,
    Release,
    ReleaseShard,
    Restart,
    Retire,
    Seal,
    SpeculativeAttempt,
    StatusLine,
    Submit,
    Switch,
    Withdraw,
)
from daskinfer.runtime.protocol.events import (
    BlocksClaimed,
    Committed,
    Compared,
    Convicted,
    Event,
    GenerationOpened,
    MemoryPressure,
    MicrobatchDone,
    Prepared,
    ShardFailed,
    ShardLoaded,
    ShardReleased,
    Tick,
    WorkerFrozen,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.plan import WorkerShape
from daskinfer.spec.recipe.schema import Recovery as RecoveryRules
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.reading import partition_source
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.store import JobStore

TICK_SECONDS = 0.25
_LOST = "the connection to the Dask scheduler is lost"


class Driver:
    """Runs one job on one cluster until it is sealed or cannot go on.

    Parameters
    ----------
    client
        Connected to a cluster whose processes are set up.
    admission
        Which of its workers can be used.
    machine
        What decides.
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
    recovery
        How long failures may last.
    note
        Called for every incident, and for the end of those that have one.
    say
        Called with what is worth a line, and no record.
    pulse
        Called a few times a second.
    poison
        What earlier runs know of rows that break whoever computes them.
    claimer
        Claims partitions, where several drivers run the job.
    """

    def __init__(
        self,
        client: Client,
        admission: Admission,
        machine: StateMachine,
        ledger: RunProgress,
        handle: JobHandle,
        keeper: SnapshotManager,
        table: PartitionTable,
        requires: dict[str, float],
        recovery: RecoveryRules,
        note: Callable[[IncidentRecord | Recovered], None],
        say: Callable[[str], None],
        pulse: Callable[[], None],
        poison: Sequence[PoisonRecord] = (),
        claimer: ClaimStore | None = None,
    ) -> None:
        self._client = client
        self._admission = admission
        self._connection = client.scheduler_comm
        self._machine = machine
        self._ledger = ledger
        self._handle = handle
        self._handles = {pin.generation: replace(handle, pin=pin) for pin in machine.pins}
        self._comparison: PartComparison | None = None
        self._table = table
        self._note = note
        self._say = say
        self._pulse = pulse
        self._happened: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._submissions = Submissions(client, len(ledger.plan.stages), requires, self._happened.put, poison)
        self._vigil = ClusterMonitor(client, handle, requires, recovery.frozen, self._happened.put)
        self._keeper = keeper
        self._errands = StorageRequests(keeper, ledger, recovery.storage, self._happened.put, claimer)
        log = ControlLog(JobStore(handle.workspace, handle.job).url)
        self._desk = ControlRequests(log, handle.epoch, self._happened.put, is_shared=bool(handle.member))
        self._departures = Departures(client, self._list_tokens, self._free)
        self._used: set[str] = set()
        self._tick_due = 0.0
        self._sealed = False
        self.running_since: float | None = None

    def run(self) -> None:
        """Run until every partition is committed.

        Raises
        ------
        Interrupted
            The user stopped it.
        ClusterLost
            The scheduler is gone; another driver may go on over another connection.
        DaskinferError
            It cannot go on; everything committed stays.
        """
        try:
            bring(self._client, job=self._handle.job, member=self._handle.member, tokens=token_prefix(self._handle))
            hearing = listen(self._client, self._handle, self._ledger.loads, self._measure, self._happened.put)
            with hearing as look_at, self._vigil:
                self._admission.wake = lambda worker: self._happened.put(partial(look_at, worker))
                self._perform(self._machine.start(self._measure(self._client)))
                while not self._sealed:
                    self._step()
        except KeyboardInterrupt:
            raise Interrupted("interrupted; everything committed so far stays") from None
        except DaskinferError:
            raise
        except Exception as error:
            # Whatever a client says in its last moments, what it means is that the scheduler is gone.
            self._check_connection(error)
            if isinstance(error, CommClosedError):  # the client has yet to find out
                raise ClusterLost(_LOST) from error
            raise
        finally:
            self._errands.close()
            self._desk.close()

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What every worker does."""
        return self._machine.workers.roster()

    def withdraw(self) -> None:
        """Take the tasks of this job back from a cluster that others use; all else goes as the connection ends."""
        self._submissions.withdraw()

    def _check_connection(self, cause: Exception | None = None) -> None:
        # A client that finds its scheduler again has a new connection, and has lost all futures.
        if self._client.status != "running" or self._client.scheduler_comm is not self._connection:
            raise ClusterLost(_LOST) from cause

    def _step(self) -> None:
        self._check_connection()
        for lost in self._submissions.look_again():
            self._perform(self._machine.handle(lost, time.monotonic()))
        self._departures.look()
        self._desk.look()
        event: Event | None = None
        with suppress(queue.Empty):
            happened = self._happened.get(timeout=TICK_SECONDS)
            event = happened()
        if isinstance(event, WorkerFrozen | WorkerPaused | WorkerResumed | MemoryPressure) and not (
            self._admission.is_usable(event.worker)
        ):
            event = None  # somebody else's, and none of our affairs
        if event is not None:
            narrate(event)
            self._follow(event)
            if isinstance(event, ShardLoaded):
                self._ledger.add_ack(event.ack)
            elif isinstance(event, Committed):
                if not self._machine.is_on_trial(event.generation):
                    self._ledger.add(event.record, self._machine.is_ours(event.record))
                    self._errands.note(event.record)
            elif isinstance(event, BlocksClaimed):
                assert self._machine.claims is not None
                for record in self._machine.claims.find_new(event):
                    self._ledger.add(record, self._machine.is_ours(record))
            elif isinstance(event, Compared):
                parts = [self._comparison, event.part] if self._comparison else [event.part]
                self._comparison = merge_parts(parts)
            elif isinstance(event, GenerationOpened):
                self._handles[event.pin.generation] = replace(self._handle, pin=event.pin)
            elif isinstance(event, Convicted):
                self._submissions.leave_out(event.conviction)
            elif isinstance(event, WorkerLost):
                event = replace(event, silent=self._vigil.silence(event.worker))
                self._admission.forget(event.worker)
                self._ledger.loads.drop(event.worker)
            elif isinstance(event, WorkerFrozen):
                self._ledger.loads.drop(event.worker)
            elif isinstance(event, ShardFailed | ShardReleased):
                self._ledger.loads.drop(event.worker, event.stage)
            self._perform(self._machine.handle(event, time.monotonic()))
        if time.monotonic() >= self._tick_due:  # however much happens
            self._tick_due = time.monotonic() + TICK_SECONDS
            self._perform(self._machine.handle(Tick(), time.monotonic()))
        self._pulse()

    def _follow(self, event: Event) -> None:
        """Count what is computed and not committed yet, but for what only compares."""
        advance = self._ledger.advance
        if isinstance(event, Prepared) and not self._machine.is_on_trial(event.generation):
            rows = self._ledger.rows_of(event.partition, self._table.partitions[event.partition].rows)
            advance.begin((event.generation, event.partition), rows, event.microbatches)
        elif isinstance(event, MicrobatchDone):
            advance.step((event.generation, event.partition))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case LoadShard(stage, worker, generation):
                    self._used.add(worker)
                    self._departures.stop(stage, worker)
                    self._ledger.loads.begin(stage, worker)
                    self._submissions.load(self._handles[generation], stage, worker)
                case GrantToken(stage, worker, generation):
                    self._grant(self._handles[generation], stage, worker)
                case Prepare(partition, attempt, generation):
                    source = partition_source(self._table, partition)
                    self._submissions.prepare(self._handles[generation], source, attempt)
                case Submit(partition, numbers, attempt, generation):
                    self._submissions.compute(self._handles[generation], partition, numbers, attempt)
                case Commit(partition, attempt, generation):
                    self._submissions.commit(self._handles[generation], partition, attempt)
                case Release(partition, generation):
                    self._ledger.advance.end((generation, partition))
                    self._submissions.release((generation, partition))
                case Withdraw(partition, number, generation):
                    self._submissions.withdraw_microbatch((generation, partition), number)
                case Inspect(partition, number, generation):
                    self._submissions.inspect(self._handles[generation], partition, number)
                case Probe(partition, number, without, attempt, generation):
                    self._submissions.probe(self._handles[generation], partition, number, without, attempt)
                case SpeculativeAttempt(partition, number, attempt, slow, generation):
                    self._submissions.compute_twice(self._handles[generation], partition, number, attempt, slow)
                case Abandon(task):
                    self._submissions.drop_loser(task)
                case LookAtAlias() | OpenGeneration() | Adopt() | Switch() | RecordPoison() | ClaimBlocks():
                    self._errands.run(action)
                case Compare(current, candidate):
                    handles = (self._handles[current.generation], self._handles[candidate.generation])
                    self._submissions.compare(handles, (current, candidate), self._keeper.tolerance)
                case Judge(pin):
                    self._errands.judge(pin, self._comparison)
                case Retire(generation, given_up):
                    self._retire(self._handles.pop(generation), given_up)
                case Restart(worker):
                    restart_worker(self._client, worker)
                case IncidentRecord() | Recovered():
                    self._note(action)
                case ReleaseShard(worker, leaves):
                    self._departures.begin(leaves, worker)
                case Answer(number, detail):
                    self._desk.answer(number, detail)
                case StatusLine(detail):
                    self._say(detail)
                case Seal():
                    self._sealed = True
                case Fail(error):
                    raise error
        if self.running_since is None and self._machine.running:
            self.running_since = time.monotonic()

    # Actions

    def _grant(self, handle: JobHandle, stage: int, worker: str) -> None:
        if worker not in self._machine.workers.ready(handle.pin.generation, stage):
            return
        try:
            grant_tokens(self._client, worker, {stage_token(handle, stage): 1, crew_token(handle): 1})
        except TimeoutError:  # later again, behind all that has happened: it may be told by then that it is frozen
            self._happened.put(partial(self._grant, handle, stage, worker))
        except OSError:  # it died meanwhile: the scheduler's event follows
            pass

    def _retire(self, handle: JobHandle, given_up: bool) -> None:
        """Take a generation's shards and tokens off the workers, and give its lock back."""
        for worker in self._used & {worker.address for worker in worker_shapes(self._client)}:
            with suppress(OSError):  # it died meanwhile
                grant_tokens(self._client, worker, dict.fromkeys(self._tokens_of(handle), 0))
                self._submissions.forget(handle, worker)
        self._ledger.advance.drop(handle.pin.generation)
        self._errands.retire(handle.pin, given_up)

    def _free(self, stage: int | None, worker: str) -> None:
        self._submissions.free(list(self._handles.values()), stage, worker)

    def _measure(self, client: Client, workers: list[str] | None = None) -> list[WorkerShape]:
        """Return the shapes of workers; asking for their devices is for those that may have other memory than the host's."""
        there = {shape.address: shape for shape in worker_shapes(client)}
        usable = self._admission.admit([worker for worker in workers or there if worker in there])
        if self._ledger.plan.numerics.device != "cpu":
            return measure_workers(client, sorted(usable))
        return [shape for address, shape in there.items() if address in usable]

    def _list_tokens(self, stage: int | None) -> list[str]:
        """Return the tokens of a stage, of all generations; all of the job's for None."""
        handles = self._handles.values()
        if stage is not None:
            return [stage_token(handle, stage) for handle in handles]
        return [crew_token(self._handle), *(token for handle in handles for token in self._tokens_of(handle))]

    def _tokens_of(self, handle: JobHandle) -> list[str]:
        return [stage_token(handle, stage.index) for stage in self._ledger.plan.stages]
