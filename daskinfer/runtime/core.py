"""The driver's logic: events in, actions out. No I/O, no cluster, no clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from daskinfer.errors import CorruptActivation, DaskinferError, JobFailed, RejectBudgetExceeded, SnapshotSkew
from daskinfer.runtime.crew import Crew
from daskinfer.runtime.messages import (
    Action,
    Commit,
    Committed,
    Event,
    Fail,
    GrantToken,
    LoadShard,
    MicrobatchDone,
    Note,
    Prepare,
    Prepared,
    Release,
    Seal,
    ShardFailed,
    ShardLoaded,
    Submit,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.spec.job import CommitRecord
from daskinfer.spec.plan import Plan, WorkerShape


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


@dataclass(slots=True)
class _OpenPartition:
    """A partition between its first task and its commit."""

    microbatches: int | None = None
    submitted: int = 0
    done: set[int] = field(default_factory=set)
    attempts: Counter[tuple[str, int]] = field(default_factory=Counter)
    committing: bool = False

    @property
    def unsubmitted(self) -> int:
        return (self.microbatches or 0) - self.submitted


class DriverCore:
    """Decides what runs where and when; the driver carries it out.

    Parameters
    ----------
    plan
        Stages, replicas and window.
    snapshot, source
        Digests that every worker must acknowledge before the first partition starts.
    epoch
        This driver's.
    partitions
        How many the input has.
    committed
        Numbers of those that earlier runs have committed.
    rejects
        Rows that earlier runs have quarantined.
    requires
        Tags that a stage's worker must declare.
    limits
        When to give up.
    """

    def __init__(
        self,
        plan: Plan,
        snapshot: str,
        source: str,
        epoch: int,
        partitions: int,
        committed: Collection[int],
        rejects: int,
        requires: dict[str, float],
        limits: Limits,
    ) -> None:
        self._window = plan.window
        self._crew = Crew(plan.replicas, requires)
        self._snapshot = snapshot
        self._source = source
        self._epoch = epoch
        self._limits = limits
        self._rejects = rejects
        self._left = partitions - len(committed)
        self._waiting = (number for number in range(partitions) if number not in committed)
        self._open: dict[int, _OpenPartition] = {}
        self._in_flight = 0
        self._typical: int | None = None
        self._losses = 0
        self._ended = False
        self.counters: Counter[str] = Counter(
            workers_lost=0, corrupt_activations=0, task_failures=0, microbatches_recomputed=0
        )

    @property
    def running(self) -> bool:
        """Whether all stages have acknowledged the snapshot, so that partitions may start."""
        return self._crew.complete

    def start(self, workers: Sequence[WorkerShape]) -> list[Action]:
        """Begin with these workers."""
        if not self._left:
            self._ended = True
            return [Seal()]
        return [LoadShard(stage, worker) for stage, worker in self._crew.enlist(workers)]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at a time `now` (seconds, any monotonic clock) and return what to do about it."""
        if self._ended:
            return []
        match event:
            case WorkerJoined():
                actions = self._on_joined(event)
            case WorkerLost():
                actions = self._on_lost(event, now)
            case ShardLoaded():
                actions = self._on_loaded(event)
            case ShardFailed():
                actions = self._on_load_failed(event)
            case Prepared():
                actions = self._on_prepared(event)
            case MicrobatchDone():
                actions = self._on_microbatch(event)
            case Committed():
                actions = self._on_committed(event.record)
            case TaskFailed():
                actions = self._on_failure(event)
            case Tick():
                actions = self._on_tick(now)
        if any(isinstance(action, Fail | Seal) for action in actions):
            self._ended = True
            return actions
        return actions + self._pump()

    # Workers

    def _on_joined(self, event: WorkerJoined) -> list[Action]:
        return [LoadShard(stage, worker) for stage, worker in self._crew.enlist([event.worker])]

    def _on_lost(self, event: WorkerLost, now: float) -> list[Action]:
        stage = self._crew.lose(event.worker, now)
        if stage is None:
            return []
        self.counters["workers_lost"] += 1
        self._losses += 1
        note = Note("worker-lost", f"{event.worker}, which held stage {stage}, is gone")
        if self._losses > self._limits.losses:
            work = ", ".join(str(number) for number in sorted(self._open)) or "none"
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
        return [note, *(LoadShard(*placement) for placement in self._crew.fill())]

    def _on_loaded(self, event: ShardLoaded) -> list[Action]:
        ack = event.ack
        if ack.snapshot != self._snapshot:
            return [
                Fail(SnapshotSkew(f"{ack.worker} loaded {ack.snapshot} for stage {ack.stage}, not {self._snapshot}"))
            ]
        if ack.source != self._source:
            return [
                Fail(
                    JobFailed(
                        f"worker {ack.worker} runs other daskinfer code than the driver",
                        hint="Install the same daskinfer on the driver, the scheduler and all workers.",
                    )
                )
            ]
        return [GrantToken(stage, worker) for stage, worker in self._crew.acknowledge(ack.stage, ack.worker)]

    def _on_load_failed(self, event: ShardFailed) -> list[Action]:
        if not self._crew.is_loading(event.worker):
            return []  # it died while loading: WorkerLost has dealt with it
        where = f"stage {event.stage} could not be loaded on {event.worker}"
        if isinstance(event.error, DaskinferError):
            return [Fail(type(event.error)(f"{where}: {event.error.message}", hint=event.error.hint))]
        return [Fail(JobFailed(f"{where}: {_describe(event.error)}"))]

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

    def _on_prepared(self, event: Prepared) -> list[Action]:
        partition = self._open[event.partition]
        partition.microbatches = event.microbatches
        self._typical = max(1, event.microbatches)
        return self._commit_if_whole(event.partition)

    def _on_microbatch(self, event: MicrobatchDone) -> list[Action]:
        self._open[event.partition].done.add(event.number)
        self._in_flight -= 1
        return self._commit_if_whole(event.partition)

    def _commit_if_whole(self, number: int) -> list[Action]:
        partition = self._open[number]
        if partition.committing or len(partition.done) != partition.microbatches:
            return []
        partition.committing = True
        return [Commit(number, attempt=0)]

    def _on_committed(self, record: CommitRecord) -> list[Action]:
        del self._open[record.partition]
        self._left -= 1
        self._losses = 0
        self._rejects += record.rows_quarantined
        actions: list[Action] = [Release(record.partition)]
        # A record of another epoch comes from a driver that died between its commit and our listing.
        for trail in record.trail if record.epoch == self._epoch else ():
            stranger = set(trail.workers) - self._crew.acknowledged(trail.stage)
            if stranger:
                error = SnapshotSkew(
                    f"partition {record.partition}: stage {trail.stage} ran on {min(stranger)}, "
                    "which never acknowledged the snapshot"
                )
                return [*actions, Fail(error)]
        if self._rejects > self._limits.rejects:
            error_ = RejectBudgetExceeded(
                f"{self._rejects} rows are quarantined; errors.max_rows allows {self._limits.rejects}",
                hint="Look at the quarantine, mend the input or raise errors.max_rows, then run again.",
            )
            return [*actions, Fail(error_)]
        return [*actions, Seal()] if not self._left else actions

    def _on_failure(self, event: TaskFailed) -> list[Action]:
        partition = self._open[event.partition]
        error = event.error
        damaged = isinstance(error, CorruptActivation)
        partition.attempts[event.step, event.number] += 1
        attempt = partition.attempts[event.step, event.number]
        where = f"partition {event.partition}" + (f", microbatch {event.number}" if event.step == "microbatch" else "")
        self.counters["corrupt_activations" if damaged else "task_failures"] += 1
        note = Note(
            "corrupt-activation" if damaged else "task-failed",
            f"{where}, {event.step}, attempt {attempt}: {_describe(error)}",
        )
        if isinstance(error, DaskinferError) and not damaged:
            return [note, Fail(error)]
        if attempt >= self._limits.attempts:
            failure = JobFailed(f"{where}: {event.step} failed {attempt} times, at last with {_describe(error)}")
            return [note, Fail(failure)]
        if event.step == "prepare":
            return [note, Prepare(event.partition, attempt)]
        if event.step == "commit":
            return [note, Commit(event.partition, attempt)]
        self.counters["microbatches_recomputed"] += 1
        return [note, Submit(event.partition, (event.number,), attempt)]

    def _pump(self) -> list[Action]:
        """Fill the window with microbatches, and prepare partitions so that it stays full."""
        if not self.running:
            return []
        actions: list[Action] = []
        for number, partition in self._open.items():
            take = min(self._window - self._in_flight, partition.unsubmitted)
            if take > 0:
                begin = partition.submitted
                actions.append(Submit(number, tuple(range(begin, begin + take)), attempt=0))
                partition.submitted += take
                self._in_flight += take
        ahead = sum(partition.unsubmitted for partition in self._open.values())
        preparing = sum(partition.microbatches is None for partition in self._open.values())
        committing = sum(partition.committing for partition in self._open.values())
        # Until one partition has shown how many microbatches to expect, two are enough to begin with.
        expected = self._typical or self._window
        while (
            ahead + preparing * expected < 2 * self._window and preparing < self._window and committing <= self._window
        ):
            number_ = next(self._waiting, None)
            if number_ is None:
                break
            self._open[number_] = _OpenPartition()
            preparing += 1
            actions.append(Prepare(number_, attempt=0))
        return actions


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
