"""The driver's logic: events in, actions out. No I/O, no cluster, no clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence

from daskinfer.errors import (
    Cancelled,
    ClaimLost,
    CorruptActivation,
    DaskinferError,
    DeviceFailed,
    JobFailed,
    StorageRefused,
)
from daskinfer.runtime.protocol.actions import (
    Action,
    Answer,
    Fail,
    IncidentRecord,
    LoadShard,
    Probe,
    Seal,
    SpeculativeAttempt,
    Submit,
    describe,
)
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    BlocksClaimed,
    CancelAsked,
    Committed,
    Compared,
    DrainAsked,
    Event,
    GenerationOpened,
    GenerationRefused,
    Judged,
    LinkMended,
    MemoryPressure,
    MicrobatchDone,
    NetworkCut,
    Prepared,
    ProbeFailed,
    Running,
    ShardFailed,
    ShardLoaded,
    ShardReleased,
    Stranded,
    SuspectEvent,
    Switched,
    TaskFailed,
    Tick,
    WorkerFrozen,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.runtime.state_machine.acknowledgements import find_mismatch, find_stranger
from daskinfer.runtime.state_machine.failures import refuse_load, refuse_rejects
from daskinfer.runtime.state_machine.faults.durations import TaskDurations
from daskinfer.runtime.state_machine.faults.poison_detector import PoisonDetector, blames_rows
from daskinfer.runtime.state_machine.faults.retry_schedule import RetrySchedule, probe_of, repeat, task_of
from daskinfer.runtime.state_machine.faults.stragglers import Stragglers
from daskinfer.runtime.state_machine.faults.worker_failures import WorkerFailureHandler
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.partitions.window import WindowController
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.runtime.state_machine.rollout.rollout import SnapshotRollout
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.runtime.state_machine.workers.unassigned_stages import UnassignedStagePolicy
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.plan import Plan, WorkerShape
from daskinfer.spec.recipe.schema import Consistency

_COUNTED = {Probe: "probes", SpeculativeAttempt: "second_starts"}


class DriverCore:
    """Decides what runs where and when; the driver carries it out.

    Parameters
    ----------
    plan
        Stages, replicas and window.
    pinning
        What partitions start on; every worker must acknowledge its digest before the first one does.
    rules
        The recipe's consistency.
    source
        Digest of the code that every worker must acknowledge too.
    epoch
        This driver's.
    partitions
        How many the input has.
    committed
        Those that earlier runs have committed -> the snapshot that they are on; kept up to date.
    rejects
        Rows that earlier runs have quarantined.
    staffing
        What is wanted of workers.
    limits
        When to give up.
    trial
        The candidate that is compared, if any.
    poison
        What earlier runs know of rows that break whoever computes them.
    claims
        Where it is one of several that run the job: what it claims.
    """

    def __init__(
        self,
        plan: Plan,
        pinning: AliasTracker,
        rules: Consistency,
        source: str,
        epoch: int,
        partitions: int,
        committed: MutableMapping[int, str],
        rejects: int,
        staffing: WorkerRequirements,
        limits: Limits,
        trial: CanaryTrial | None = None,
        poison: Iterable[PoisonRecord] = (),
        claims: ClaimPolicy | None = None,
    ) -> None:
        pins = [pinning.current, *([trial.pin] if trial else [])]
        self._crew = WorkerAssignment(staffing, [pin.generation for pin in pins])
        self._patience = UnassignedStagePolicy(limits.missing, limits.patience)
        if trial is None:
            self._work = PartitionTracker(
                plan.window,
                claims or ((None, number) for number in range(partitions) if number not in committed),
                partitions - len(committed),
            )
        else:
            self._work = PartitionTracker(plan.window, *trial.places(partitions, committed))
        self._trial = trial
        self.claims = claims
        self._succession = SnapshotRollout(pinning, rules, self._crew, self._work, committed, partitions, trial)
        self._flow = WindowController(plan)
        self._recovery = RetrySchedule(self._crew, self._work, limits.paused, limits.storage)
        self._suspicion = PoisonDetector(self._work, poison, limits.hopeless)
        self._stragglers = Stragglers(self._crew, self._work, self._suspicion, TaskDurations(limits.seconds))
        self._source = source
        self._epoch = epoch
        self._limits = limits
        self._rejects = rejects
        self._ended = False
        self.counters: Counter[str] = Counter(
            workers_lost=0, corrupt_activations=0, task_failures=0, microbatches_recomputed=0
        )
        self._losses = WorkerFailureHandler(
            self._crew, self._work, self._suspicion, self._recovery, limits, self.counters
        )

    @property
    def running(self) -> bool:
        """Whether all stages have acknowledged the snapshot, so that partitions may start."""
        return self._crew.complete

    @property
    def pins(self) -> list[SnapshotPin]:
        """What there is to be loaded at the start."""
        return list(self._succession.pins.values())

    @property
    def crew(self) -> WorkerAssignment:
        """The workers and what they do."""
        return self._crew

    def is_on_trial(self, generation: int) -> bool:
        """Tell whether what is computed on a generation is only compared."""
        return self._succession.is_on_trial(generation)

    def is_ours(self, record: CommitRecord) -> bool:
        """Tell whether this driver asked for a commit."""
        return record.epoch == self._epoch and record.member == (self.claims.member if self.claims else "")

    def start(self, workers: Sequence[WorkerShape]) -> list[Action]:
        """Begin with these workers."""
        if self._succession.is_over:
            self._ended = True
            return [Seal()]
        return [*self._crew.enlist(workers), *(self._trial.begin() if self._trial else [])]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at a time `now` (seconds, any monotonic clock) and return what to do about it."""
        if self._ended:
            return []
        self._flow.hear(event, self._work, now)
        over = self._recovery.hear(event, now)
        match event:
            case WorkerJoined():
                actions = self._losses.join(event, now)
            case WorkerLost():
                actions = self._losses.lost(event, now)
            case WorkerFrozen():
                actions = self._losses.freeze(event, now)
            case NetworkCut():
                actions = self._losses.cut(event, now)
            case LinkMended():
                actions = self._losses.mend(event, now)
            case WorkerPaused() | WorkerResumed() | MemoryPressure():
                actions = []
            case ShardLoaded():
                actions = self._on_loaded(event, now)
            case ShardFailed():
                actions = self._on_load_failed(event, now)
            case Prepared():
                actions = self._work.prepared((event.generation, event.partition), event.microbatches)
            case MicrobatchDone():
                actions = self._on_computed(event)
            case Committed():
                actions = self._on_committed(event)
            case TaskFailed():
                actions = self._on_failure(event, now)
            case Stranded():
                actions = self._on_stranded(event)
            case Running():
                actions = self._on_running(event, now)
            case AliasSeen():
                actions = self._succession.on_alias(event.head)
            case AliasUnseen():
                actions = self._succession.on_alias_unseen(event.error)
            case GenerationOpened():
                actions = self._succession.on_opened(event.pin)
            case GenerationRefused():
                actions = self._succession.give_up(event.error)
            case Compared():
                actions = self._succession.on_compared(event.partition)
            case Judged():
                actions = self._succession.on_judged(event)
            case Switched():
                self._rejects = event.rejects
                actions = self._succession.on_switched(event.partitions)
            case BlocksClaimed():
                actions = self._on_claimed(event, now)
            case CancelAsked(number, by, at):
                actions = [Answer(number, "the run stops"), Fail(Cancelled(f"cancelled by {by} at {at}"))]
            case DrainAsked(number, worker, by):
                actions = [
                    IncidentRecord("drain-asked", f"{by} asked for it: {worker}"),
                    *self._crew.drain(number, worker, now),
                ]
            case ShardReleased(worker, stage):
                actions = self._crew.stood_down(worker, stage, now)
            case Tick():
                actions = self._on_tick(now)
            case _:
                actions = self._on_suspect(event, now)
        actions += self._check_budget() if self._convicted else []
        if self.running and not any(isinstance(action, Fail) for action in actions):
            actions += [*self._suspicion.go_on(), *self._succession.go_on(now)]
        if self.claims is not None:
            actions += self.claims.go_on(now, self.running, bool(self._work.open))
        self.counters.update(_COUNTED[type(action)] for action in actions if type(action) in _COUNTED)
        actions = [*over, *actions, *self._recovery.close(actions, now)]
        self._ended = any(isinstance(action, Fail | Seal) for action in actions)
        return actions

    # Workers

    def _on_running(self, event: Running, now: float) -> list[Action]:
        hung, actions = self._stragglers.look(event.tasks, now)
        for worker, why in hung.items():
            actions += self._losses.take_off(worker, now, "worker-hung", why)
        return actions

    def _on_loaded(self, event: ShardLoaded, now: float) -> list[Action]:
        ack = event.ack
        pin = self._succession.pins.get(ack.generation)
        if pin is None:
            return []  # given up while it was loading
        if (error := find_mismatch(ack, pin, self._source)) is not None:
            return [Fail(error)]
        return self._crew.acknowledge(ack.generation, ack.stage, ack.worker, now)

    def _on_load_failed(self, event: ShardFailed, now: float) -> list[Action]:
        if not self._crew.is_loading(event.generation, event.stage, event.worker):
            return []  # it died while loading: WorkerLost has dealt with it
        if isinstance(event.error, DeviceFailed):
            return self._losses.take_off(event.worker, now, "device-failed", f"lost its device: {event.error.message}")
        if isinstance(event.error, StorageRefused) and not self._succession.is_candidate(event.generation):
            load = ("load", event.generation, event.stage, event.worker)
            again = LoadShard(event.stage, event.worker, event.generation)
            return self._recovery.refuse(load, again, event.error, now)
        error = refuse_load(event)
        return self._succession.give_up(error) if self._succession.is_candidate(event.generation) else [Fail(error)]

    def _on_tick(self, now: float) -> list[Action]:
        actions = self._recovery.due(now)
        actions += [*self._losses.end_pauses(now), *self._losses.admit(now), *self._crew.look(self._work.left, now)]
        return actions + self._patience.look(self._crew.missing(now), self._losses.describe_missing, now)

    # Partitions

    def _on_claimed(self, event: BlocksClaimed, now: float) -> list[Action]:
        assert self.claims is not None
        actions, rejects = self.claims.take(event, self._work, self._abandon)
        self._rejects += rejects
        if not self._work.left and not self.running:
            actions.append(Seal())  # nobody needs what is being loaded
        return [
            *self._recovery.note_store("claims", event.trouble, now),
            *actions,
            *self._check_budget(),
        ]

    def _on_computed(self, event: MicrobatchDone) -> list[Action]:
        place = (event.generation, event.partition)
        self._suspicion.passed(place, event.number)
        self._stragglers.note_done(*place, event.number)
        return self._work.computed(place, event.number)

    def _on_suspect(self, event: SuspectEvent, now: float) -> list[Action]:
        match event:
            case ProbeFailed(_, _, StorageRefused() as error) if (again := self._suspicion.again(event)) is not None:
                return self._recovery.refuse(probe_of(event), again, error, now)
            case ProbeFailed(_, _, DeviceFailed() as error):
                off = self._losses.take_off(error.worker, now, "device-failed", f"lost its device: {error.message}")
                return [*off, *self._suspicion.hear(event, self._limits.attempts, now)]
        return self._suspicion.hear(event, self._limits.attempts, now)

    def _on_committed(self, event: Committed) -> list[Action]:
        record = event.record
        if self.claims is not None:
            self.claims.note(record.partition)
        actions = [self._work.committed((event.generation, record.partition))]
        self._suspicion.forget((event.generation, record.partition))
        self._work.left -= 1
        self._losses.note_commit()
        self._crew.meter.note(record)
        # What only a trial refuses is the gate's affair.
        if not self._succession.is_on_trial(event.generation):
            self._rejects += record.rows_quarantined
        actions += self._succession.note_committed(event.generation, record)
        # A record of another driver's comes from one that died between its commit and our listing, or from a member.
        if self.is_ours(record) and (error := find_stranger(record, self._crew.acknowledged)) is not None:
            return [*actions, Fail(error)]
        return [*actions, *self._check_budget()]

    @property
    def _convicted(self) -> int:
        """Rows that are convicted in partitions that are not committed yet; what only a trial refuses is the gate's."""
        generations = {pin.generation for pin in self.pins if not self.is_on_trial(pin.generation)}
        return self._suspicion.convicted_in(generations)

    def _check_budget(self) -> list[Action]:
        rejects = self._rejects + self._convicted
        if rejects <= self._limits.rejects:
            return []
        return [Fail(refuse_rejects(rejects, self._limits.rejects))]

    def _abandon(self, place: PartitionKey) -> Action:
        self._suspicion.forget(place)
        return self._work.abandon(place)

    def _on_stranded(self, event: Stranded) -> list[Action]:
        place = (event.generation, event.partition)
        again = self._work.strand(place, event.microbatches, event.committing)
        self.counters["microbatches_recomputed"] += sum(isinstance(action, Submit) for action in again)
        return [*self._suspicion.strand(place, event.microbatches), *again]

    def _on_failure(self, event: TaskFailed, now: float) -> list[Action]:
        place = (event.generation, event.partition)
        partition = self._work[place]
        error = event.error
        if event.lost:  # it is committed when they are computed once more
            self._work.lose(place, [number for number, _ in event.lost])
            failures = [TaskFailed("microbatch", place[1], number, why, place[0]) for number, why in event.lost]
            return [action for failure in failures for action in self._on_failure(failure, now)]
        if isinstance(error, ClaimLost):  # another member computes it, for it took us for dead
            return [IncidentRecord("claim-lost", describe(error)), self._abandon(place)]
        damaged = isinstance(error, CorruptActivation)
        partition.attempts[event.step, event.number] += 1
        attempt = partition.attempts[event.step, event.number]
        if isinstance(error, StorageRefused):
            partition.excused[event.step, event.number] += 1
            return self._recovery.refuse(task_of(event), repeat(event, attempt, self._work), error, now)
        where = f"partition {event.partition}" + (f", microbatch {event.number}" if event.step == "microbatch" else "")
        self.counters["corrupt_activations" if damaged else "task_failures"] += 1
        if isinstance(error, DeviceFailed):
            actions = self._losses.take_off(error.worker, now, "device-failed", f"lost its device: {error.message}")
        else:
            kind = "corrupt-activation" if damaged else "task-failed"
            detail = f"{where}, {event.step}, attempt {attempt}: {describe(error)}"
            actions = [self._recovery.book.begin(task_of(event), kind, detail, now)]
        if isinstance(error, DaskinferError) and not isinstance(error, CorruptActivation | DeviceFailed):
            return [*actions, Fail(error)]
        if event.step == "microbatch" and blames_rows(error):
            if taken_out := self._suspicion.raised(place, event.number, error, now):
                return [*actions, *taken_out]
        elif attempt - partition.excused[event.step, event.number] >= self._limits.attempts:
            failure = JobFailed(f"{where}: {event.step} failed {attempt} times, at last with {describe(error)}")
            return [*actions, Fail(failure)]
        if event.step == "microbatch":
            self.counters["microbatches_recomputed"] += 1
        return [*actions, repeat(event, attempt, self._work)]
