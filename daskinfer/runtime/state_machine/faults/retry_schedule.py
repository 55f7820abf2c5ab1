"""What is wrong and not over yet: refused calls that are tried again, paused workers, and the incidents of both.

Pure, as the core is: the clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from daskinfer.errors import StorageRefused
from daskinfer.runtime.protocol.actions import (
    Action,
    Commit,
    Fail,
    GrantTag,
    LoadShard,
    Prepare,
    Probe,
    Release,
    Submit,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    MicrobatchDone,
    Prepared,
    ProbeDone,
    ProbeFailed,
    ShardLoaded,
    TaskFailed,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.state_machine.faults.incidents import IncidentLog
from daskinfer.runtime.state_machine.faults.usual_durations import UsualDurations
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.units import format_bytes, format_duration

LONGEST_BACKOFF = 30.0
_STORE = "store"


@dataclass(slots=True)
class _Refused:
    since: float
    tries: int
    again: tuple[float, Action] | None = None


class RetrySchedule:
    """Keeps what has to be done later, and closes incidents when what they stopped goes on.

    Parameters
    ----------
    workers, partitions
        What is still wanted.
    paused
        Seconds that a worker may be paused.
    storage
        Seconds that a store may refuse.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> partitions = PartitionTracker(window=2, waiting=iter([(None, 0)]), left=1)
    >>> _ = partitions.pump(generation=0, may_start=True)
    >>> schedule = RetrySchedule(WorkerAssignment(make_rules().requirements), partitions, paused=60.0, storage=300.0)
    >>> schedule.refuse("prepare", Prepare(0, attempt=1), StorageRefused("the store is away"), now=0.0)[0].kind
    'storage-refused'
    >>> schedule.due(now=0.5), schedule.due(now=1.0)
    ([], [Prepare(partition=0, attempt=1, generation=0)])
    """

    def __init__(self, workers: WorkerAssignment, partitions: PartitionTracker, paused: float, storage: float) -> None:
        self._workers = workers
        self._partitions = partitions
        self._longest_pause = paused
        self._longest_refusal = storage
        self._paused: dict[str, float] = {}
        self._refused: dict[Hashable, _Refused] = {}
        self._durations = UsualDurations()
        self.book = IncidentLog()

    def on_paused(self, event: WorkerPaused, now: float) -> list[Action]:
        """Take in that a worker's memory is full."""
        if event.worker not in self._workers:
            return []
        self._paused[event.worker] = now
        used, limit = format_bytes(event.used), format_bytes(event.limit)
        detail = f"{event.worker} holds {used} of {limit} and takes no new tasks"
        return [self.book.begin(event.worker, "worker-paused", detail, now)]

    def on_resumed(self, event: WorkerResumed, now: float) -> list[Action]:
        """Take in that a paused worker takes tasks again."""
        self._paused.pop(event.worker, None)
        return list(self.book.end(event.worker, now))

    def on_prepared(self, event: Prepared, now: float) -> list[Action]:
        """Close what kept a partition from being read."""
        return self._succeed(("prepare", event.generation, event.partition, 0), now)

    def on_computed(self, event: MicrobatchDone, now: float) -> list[Action]:
        """Close what kept a microbatch from being computed."""
        return self._succeed(("microbatch", event.generation, event.partition, event.number), now)

    def on_probed(self, event: ProbeDone | ProbeFailed, now: float) -> list[Action]:
        """Close what kept a probe from being computed, unless it is a store that refuses."""
        if isinstance(event, ProbeFailed) and isinstance(event.error, StorageRefused):
            return []
        return self._succeed(probe_of(event), now)

    def on_committed(self, event: Committed, now: float) -> list[Action]:
        """Close what kept a partition from being committed, and note where the store was slow."""
        record = event.record
        times = {"read": record.read, "commit": record.write} if record.read + record.write else {}
        noted = [action for what, spent in times.items() for action in self._time(what, spent, record, now)]
        return [*self._succeed(("commit", event.generation, record.partition, 0), now), *noted]

    def on_loaded(self, event: ShardLoaded, now: float) -> list[Action]:
        """Close what kept a shard from being loaded."""
        ack = event.ack
        return self._succeed(("load", ack.generation, ack.stage, ack.worker), now)

    def lose(self, worker: str, stage: int) -> None:
        """Let a worker's incidents be over when its stage has another one."""
        self._paused.pop(worker, None)
        self.book.move(worker, stage)

    def overdue(self, now: float) -> list[str]:
        """Return the workers that have been paused for too long."""
        return [worker for worker, since in self._paused.items() if now - since >= self._longest_pause]

    def refuse(self, what: Hashable, again: Action, error: StorageRefused, now: float) -> list[Action]:
        """Do something again later that a store refused, or give up.

        Parameters
        ----------
        what
            The task.
        again
            What submits it once more.
        error
            What the store said.
        now
            The time.
        """
        refused = self._refused.setdefault(what, _Refused(now, 0))
        if now - refused.since >= self._longest_refusal:
            lasted = format_duration(now - refused.since)
            return [Fail(StorageRefused(f"{error.message} (and so for {lasted})", hint=error.hint))]
        refused.again = (now + min(2.0**refused.tries, LONGEST_BACKOFF), again)
        refused.tries += 1
        return [] if self.book.is_open(_STORE) else [self.book.begin(_STORE, "storage-refused", error.message, now)]

    def note_store(self, what: str, trouble: str, now: float) -> list[Action]:
        """Take in that a store refuses something which is asked for again and again, or no longer does."""
        if not trouble:
            return list(self.book.end(what, now))
        return [] if self.book.is_open(what) else [self.book.begin(what, "storage-refused", trouble, now)]

    def due(self, now: float) -> list[Action]:
        """Return what is to be done again now."""
        actions = []
        for what, refused in list(self._refused.items()):
            if refused.again is not None and refused.again[0] <= now:
                action = refused.again[1]
                refused.again = None
                if self._is_wanted(action):
                    actions.append(action)
                else:
                    del self._refused[what]
        return actions

    def close(self, actions: Iterable[Action], now: float) -> list[Action]:
        """Close the incidents that are over by what is done now."""
        over: list[Action] = []
        for action in actions:
            match action:
                case GrantTag(stage, _, generation) if generation == self._workers.generations[-1]:
                    over += self.book.end(stage, now)
                case Commit(partition, _, generation):
                    for what in self.book.of(("microbatch", generation, partition)):
                        while self.book.is_open(what):
                            over += self.book.end(what, now)
                case Release(partition, generation):
                    for what in [what for what in self._refused if _is_of(what, generation, partition)]:
                        over += self._succeed(what, now)
        return over

    def _succeed(self, what: Hashable, now: float) -> list[Action]:
        over: list[Action] = list(self.book.end(what, now))
        if self._refused.pop(what, None) is not None and not self._refused:
            over += self.book.end(_STORE, now)
        return over

    def _time(self, what: str, seconds: float, record: CommitRecord, now: float) -> list[Action]:
        usual = self._durations.judge(what, seconds)
        incident = f"slow {what}"
        if usual is None:
            return list(self.book.end(incident, now))
        if self.book.is_open(incident):
            return []
        detail = (
            f"the {what} of partition {record.partition} took {format_duration(seconds)}, "
            f"where {format_duration(usual)} is usual"
        )
        return [self.book.begin(incident, "storage-slow", detail, now)]

    def _is_wanted(self, action: Action) -> bool:
        if isinstance(action, LoadShard):
            return self._workers.is_loading(action.generation, action.stage, action.worker)
        assert isinstance(action, Prepare | Submit | Commit | Probe)
        place = (action.generation, action.partition)
        return place in self._partitions.open and (not isinstance(action, Commit) or self._partitions[place].committing)


def repeat(event: TaskFailed, attempt: int, partitions: PartitionTracker) -> Action:
    """Return what submits a failed task again.

    Examples
    --------
    >>> partitions = PartitionTracker(window=2, waiting=iter([]), left=0)
    >>> repeat(TaskFailed("prepare", partition=3, number=0, error=OSError()), attempt=1, partitions=partitions)
    Prepare(partition=3, attempt=1, generation=0)
    """
    match event.step:
        case "prepare":
            return Prepare(event.partition, attempt, event.generation)
        case "commit":
            return partitions.commit((event.generation, event.partition))
        case "microbatch":
            return partitions.again((event.generation, event.partition), event.number)


def task_of(event: TaskFailed) -> Hashable:
    """Return the name of a task among incidents: step, generation, partition, number.

    Examples
    --------
    >>> task_of(TaskFailed("microbatch", partition=3, number=7, error=OSError()))
    ('microbatch', 0, 3, 7)
    """
    return (event.step, event.generation, event.partition, event.number)


def probe_of(event: ProbeDone | ProbeFailed) -> Hashable:
    """Return the name of a suspect's probes among incidents.

    Examples
    --------
    >>> probe_of(ProbeFailed(partition=3, number=7, error=OSError()))
    ('probe', 0, 3, 7)
    """
    return ("probe", event.generation, event.partition, event.number)


def _is_of(what: Hashable, generation: int, partition: int) -> bool:
    return isinstance(what, tuple) and what[0] != "load" and what[1:3] == (generation, partition)
