"""The driver's logic: events in, actions out. No I/O, no cluster, no clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daskinfer.errors import (
    ClaimLost,
    CorruptActivation,
    DaskinferError,
    JobFailed,
    RejectBudgetExceeded,
    SnapshotSkew,
)
from daskinfer.runtime.claims import Claimed, Claims
from daskinfer.runtime.crew import Crew
from daskinfer.runtime.messages import (
    Action,
    AliasSeen,
    AliasUnseen,
    Commit,
    Committed,
    Compared,
    Event,
    Fail,
    GenerationOpened,
    GenerationRefused,
    GrantToken,
    Judged,
    LoadShard,
    MicrobatchDone,
    Note,
    Prepare,
    Prepared,
    Seal,
    ShardFailed,
    ShardLoaded,
    Submit,
    Switched,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
    describe,
)
from daskinfer.runtime.pinning import Pinning
from daskinfer.runtime.succession import Succession
from daskinfer.runtime.trial import Trial
from daskinfer.runtime.workload import Workload
from daskinfer.spec.generation import Pin
from daskinfer.spec.job import CommitRecord
from daskinfer.spec.plan import Plan, WorkerShape
from daskinfer.spec.recipe import Consistency


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give up."""

    rejects: int
    """Quarantined rows that the job may have."""
    attempts: int = 3
    """Tries of one task that raises."""
    losses: int = 5
    """Workers lost since the last commit: more means that the work itself kills them."""
    patience: float = 60.0
    """Seconds that a stage may be without any worker."""


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
        Those that earlier runs have committed -> the snapshot that they are on.
    rejects
        Rows that earlier runs have quarantined.
    requires
        Tags that a stage's worker must declare.
    limits
        When to give up.
    trial
        The candidate that is compared, if any.
    claims
        Where it is one of several that run the job: what it claims.
    """

    def __init__(
        self,
        plan: Plan,
        pinning: Pinning,
        rules: Consistency,
        source: str,
        epoch: int,
        partitions: int,
        committed: Mapping[int, str],
        rejects: int,
        requires: dict[str, float],
        limits: Limits,
        trial: Trial | None = None,
        claims: Claims | None = None,
    ) -> None:
        pins = [pinning.current, *([trial.pin] if trial else [])]
        self._crew = Crew(plan.replicas, requires, [pin.generation for pin in pins])
        if trial is None:
            self._work = Workload(
                plan.window,
                claims or ((None, number) for number in range(partitions) if number not in committed),
                partitions - len(committed),
            )
        else:
            self._work = Workload(plan.window, *trial.places(partitions, committed))
        self._trial = trial
        self._claims = claims
        self._succession = Succession(pinning, rules, self._crew, self._work, committed, partitions, trial)
        self._source = source
        self._epoch = epoch
        self._limits = limits
        self._rejects = rejects
        self._losses = 0
        self._ended = False
        self.counters: Counter[str] = Counter(
            workers_lost=0, corrupt_activations=0, task_failures=0, microbatches_recomputed=0
        )

    @property
    def running(self) -> bool:
        """Whether all stages have acknowledged the snapshot, so that partitions may start."""
        return self._crew.complete

    @property
    def pins(self) -> list[Pin]:
        """What there is to be loaded at the start."""
        return list(self._succession.pins.values())

    def is_on_trial(self, generation: int) -> bool:
        """Tell whether what is computed on a generation is only compared."""
        return self._succession.is_on_trial(generation)

    def is_ours(self, record: CommitRecord) -> bool:
        """Tell whether this driver asked for a commit."""
        return record.epoch == self._epoch and record.member == (self._claims.member if self._claims else "")

    def is_counted(self, record: CommitRecord) -> bool:
        """Tell whether a commit that another member may have made is taken in already."""
        return self._claims is not None and self._claims.is_done(record.partition)

    def start(self, workers: Sequence[WorkerShape]) -> list[Action]:
        """Begin with these workers."""
        if self._succession.is_over:
            self._ended = True
            return [Seal()]
        return [*self._load(self._crew.enlist(workers)), *(self._trial.begin() if self._trial else [])]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at a time `now` (seconds, any monotonic clock) and return what to do about it."""
        if self._ended:
            return []
        match event:
            case WorkerJoined():
                actions = self._load(self._crew.enlist([event.worker]))
            case WorkerLost():
                actions = self._on_lost(event, now)
            case ShardLoaded():
                actions = self._on_loaded(event)
            case ShardFailed():
                actions = self._on_load_failed(event)
            case Prepared():
                actions = self._work.prepared((event.generation, event.partition), event.microbatches)
            case MicrobatchDone():
                actions = self._work.computed((event.generation, event.partition), event.number)
            case Committed():
                actions = self._on_committed(event)
            case TaskFailed():
                actions = self._on_failure(event)
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
            case Claimed():
                actions = self._on_claimed(event)
            case Tick():
                actions = self._on_tick(now)
        if self.running and not any(isinstance(action, Fail) for action in actions):
            actions += self._succession.go_on(now)
        if self._claims is not None:
            actions += self._claims.go_on(now, self.running, bool(self._work.open))
        self._ended = any(isinstance(action, Fail | Seal) for action in actions)
        return actions

    # Workers

    def _load(self, placements: Sequence[tuple[int, str]]) -> list[Action]:
        return [
            LoadShard(stage, worker, generation)
            for stage, worker in placements
            for generation in self._crew.generations
        ]

    def _on_lost(self, event: WorkerLost, now: float) -> list[Action]:
        stage = self._crew.lose(event.worker, now)
        if stage is None:
            return []
        self.counters["workers_lost"] += 1
        self._losses += 1
        note = Note("worker-lost", f"{event.worker}, which held stage {stage}, is gone")
        if self._losses > self._limits.losses:
            work = ", ".join(str(number) for number in sorted({number for _, number in self._work.open})) or "none"
            return [
                note,
                Fail(
                    JobFailed(
                        f"{self._losses} workers died without one partition being committed in between "
                        f"(partitions in work: {work})",
                        hint="A row may crash the model or exhaust memory; look at the workers' logs, then run again.",
                    )
                ),
            ]
        return [note, *self._load(self._crew.fill())]

    def _on_loaded(self, event: ShardLoaded) -> list[Action]:
        ack = event.ack
        pin = self._succession.pins.get(ack.generation)
        if pin is None:
            return []  # given up while it was loading
        if ack.snapshot != pin.snapshot:
            return [Fail(SnapshotSkew(f"{ack.worker} loaded {ack.snapshot} for stage {ack.stage}, not {pin.snapshot}"))]
        if ack.source != self._source:
            return [
                Fail(
                    JobFailed(
                        f"worker {ack.worker} runs other daskinfer code than the driver",
                        hint="Install the same daskinfer on the driver, the scheduler and all workers.",
                    )
                )
            ]
        granted = self._crew.acknowledge(ack.generation, ack.stage, ack.worker)
        return [GrantToken(stage, worker, generation) for generation, stage, worker in granted]

    def _on_load_failed(self, event: ShardFailed) -> list[Action]:
        if not self._crew.is_loading(event.generation, event.worker):
            return []  # it died while loading: WorkerLost has dealt with it
        where = f"stage {event.stage} could not be loaded on {event.worker}"
        if isinstance(event.error, DaskinferError):
            error = type(event.error)(f"{where}: {event.error.message}", hint=event.error.hint)
        else:
            error = JobFailed(f"{where}: {describe(event.error)}")
        return self._succession.give_up(error) if self._succession.is_candidate(event.generation) else [Fail(error)]

    def _on_tick(self, now: float) -> list[Action]:
        missing = self._crew.missing(now - self._limits.patience)
        if missing is None:
            return []
        return [
            Fail(
                JobFailed(
                    f"stage {missing} has had no worker for {self._limits.patience:.0f} s: none is left that declares "
                    f"{self._crew.wanted}",
                    hint="Start a worker with these resources, then run the same command again.",
                )
            )
        ]

    # Partitions

    def _on_claimed(self, event: Claimed) -> list[Action]:
        """Take in what other members have committed, and what is ours to start."""
        claims = self._claims
        assert claims is not None
        actions: list[Action] = []
        for record in event.committed:
            if claims.is_done(record.partition):
                continue
            claims.note(record.partition)
            self._work.left -= 1
            self._rejects += record.rows_quarantined
            if (place := (record.generation, record.partition)) in self._work.open:
                actions.append(self._work.abandon(place))
        if claims.take(event, self._work.open):
            actions.append(Note("claim-failed", event.trouble))
        if not self._work.left and not self.running:
            return [*actions, Seal()]  # nobody needs what is being loaded
        return [*actions, *self._check_rejects()]

    def _on_committed(self, event: Committed) -> list[Action]:
        record = event.record
        if self._claims is not None:
            self._claims.note(record.partition)
        actions = [self._work.committed((event.generation, record.partition))]
        self._work.left -= 1
        self._losses = 0
        # What only a trial refuses is the gate's affair.
        if not self._succession.is_on_trial(event.generation):
            self._rejects += record.rows_quarantined
        actions += self._succession.note_committed(event.generation, record)
        # A record of another driver's comes from one that died between its commit and our listing, or from a member.
        for trail in record.trail if self.is_ours(record) else ():
            stranger = set(trail.workers) - self._crew.acknowledged(record.generation, trail.stage)
            if stranger:
                error = SnapshotSkew(
                    f"partition {record.partition}: stage {trail.stage} ran on {min(stranger)}, "
                    "which never acknowledged the snapshot"
                )
                return [*actions, Fail(error)]
        return [*actions, *self._check_rejects()]

    def _check_rejects(self) -> list[Action]:
        if self._rejects <= self._limits.rejects:
            return []
        error = RejectBudgetExceeded(
            f"{self._rejects} rows are quarantined; errors.max_rows allows {self._limits.rejects}",
            hint="Look at the quarantine, mend the input or raise errors.max_rows, then run again.",
        )
        return [Fail(error)]

    def _on_failure(self, event: TaskFailed) -> list[Action]:
        partition = self._work[event.generation, event.partition]
        error = event.error
        if isinstance(error, ClaimLost):  # another member computes it, for it took us for dead
            return [Note("claim-lost", describe(error)), self._work.abandon((event.generation, event.partition))]
        damaged = isinstance(error, CorruptActivation)
        partition.attempts[event.step, event.number] += 1
        attempt = partition.attempts[event.step, event.number]
        where = f"partition {event.partition}" + (f", microbatch {event.number}" if event.step == "microbatch" else "")
        self.counters["corrupt_activations" if damaged else "task_failures"] += 1
        note = Note(
            "corrupt-activation" if damaged else "task-failed",
            f"{where}, {event.step}, attempt {attempt}: {describe(error)}",
        )
        if isinstance(error, DaskinferError) and not damaged:
            return [note, Fail(error)]
        if attempt >= self._limits.attempts:
            failure = JobFailed(f"{where}: {event.step} failed {attempt} times, at last with {describe(error)}")
            return [note, Fail(failure)]
        if event.step == "prepare":
            return [note, Prepare(event.partition, attempt, event.generation)]
        if event.step == "commit":
            return [note, Commit(event.partition, attempt, event.generation)]
        self.counters["microbatches_recomputed"] += 1
        return [note, Submit(event.partition, (event.number,), attempt, event.generation)]
