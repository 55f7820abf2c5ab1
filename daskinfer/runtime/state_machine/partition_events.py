"""What happens to partitions and microbatches, and what follows from it for every part."""

from __future__ import annotations

from collections import Counter

from daskinfer.errors import ClaimLost, CorruptActivation, DaskinferError, DeviceFailed, JobFailed, StorageRefused
from daskinfer.runtime.protocol.actions import Action, Fail, IncidentRecord, Seal, Submit, describe
from daskinfer.runtime.protocol.events import (
    BlocksClaimed,
    Committed,
    MicrobatchDone,
    ProbeFailed,
    Stranded,
    Switched,
    TaskFailed,
)
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.runtime.state_machine.acknowledgements import find_stranger
from daskinfer.runtime.state_machine.faults.poison_detector import blames_rows
from daskinfer.runtime.state_machine.faults.retry_schedule import probe_of, repeat, task_of
from daskinfer.runtime.state_machine.parts import Parts
from daskinfer.runtime.state_machine.rules import RunRules
from daskinfer.spec.job.commit import CommitRecord


class PartitionEvents:
    """Handles the events of partitions; it holds nothing but counts for the report.

    Parameters
    ----------
    parts
        Whose state follows.
    rules
        What the run goes by.

    Examples
    --------
    >>> from daskinfer.runtime.state_machine.parts import make_parts
    >>> from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
    >>> from daskinfer.runtime.state_machine.rules import EarlierWork
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> rules = make_rules()
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> parts = make_parts(rules, EarlierWork(partitions=3, committed={}, rejects=1), tracker)
    >>> print(PartitionEvents(parts, rules).check_budget()[0].error.message)
    1 row is quarantined; errors.max_rows allows 0
    """

    def __init__(self, parts: Parts, rules: RunRules) -> None:
        self._parts = parts
        self._rules = rules
        self.counters: Counter[str] = Counter(corrupt_activations=0, task_failures=0, microbatches_recomputed=0)

    def is_ours(self, record: CommitRecord) -> bool:
        """Whether this driver asked for a commit."""
        claims = self._parts.claims
        return record.epoch == self._rules.epoch and record.member == (claims.member if claims else "")

    def on_computed(self, event: MicrobatchDone, now: float) -> list[Action]:
        """Take in that a microbatch is through the last stage."""
        place = (event.generation, event.partition)
        self._parts.poison.passed(place, event.number)
        self._parts.stragglers.note_done(*place, event.number)
        return self._parts.partitions.computed(place, event.number)

    def on_committed(self, event: Committed, now: float) -> list[Action]:
        """Take in that a partition is committed, and make sure that it may be."""
        parts, record = self._parts, event.record
        if parts.claims is not None:
            parts.claims.note(record.partition)
        actions = [parts.partitions.committed((event.generation, record.partition))]
        parts.poison.forget((event.generation, record.partition))
        parts.partitions.waiting.count_committed()
        parts.failures.note_commit()
        parts.workers.meter.note(record)
        # What only a trial refuses is the gate's affair.
        if not parts.rollout.is_on_trial(event.generation):
            parts.budget.spend(record.rows_quarantined)
        actions += parts.rollout.note_committed(event.generation, record)
        # A record of another driver's comes from one that died between its commit and our listing, or from a member.
        if self.is_ours(record) and (error := find_stranger(record, parts.workers.acknowledged)) is not None:
            return [*actions, Fail(error)]
        return [*actions, *self.check_budget()]

    def on_claimed(self, event: BlocksClaimed, now: float) -> list[Action]:
        """Take in what the other members have committed, and what is ours to start."""
        parts = self._parts
        assert parts.claims is not None
        actions, rejects = parts.claims.take(event, parts.partitions, self._abandon)
        parts.budget.spend(rejects)
        if not parts.partitions.left and not parts.workers.complete:
            actions.append(Seal())  # nobody needs what is being loaded
        return [*parts.retries.note_store("claims", event.trouble, now), *actions, *self.check_budget()]

    def on_switched(self, event: Switched, now: float) -> list[Action]:
        """Take in which rows are quarantined in what counts now."""
        self._parts.budget.recount(event.rejects)
        return []

    def on_stranded(self, event: Stranded, now: float) -> list[Action]:
        """Start again what waits for rows that were lost."""
        place = (event.generation, event.partition)
        again = self._parts.partitions.strand(place, event.microbatches, event.committing)
        self.counters["microbatches_recomputed"] += sum(isinstance(action, Submit) for action in again)
        return [*self._parts.poison.strand(place, event.microbatches), *again]

    def on_probe_failed(self, event: ProbeFailed, now: float) -> list[Action]:
        """Probe again where a store or a device failed; otherwise its rows may have done it."""
        parts, error = self._parts, event.error
        if isinstance(error, StorageRefused) and (again := parts.poison.again(event)) is not None:
            return parts.retries.refuse(probe_of(event), again, error, now)
        off = self._take_device_off(error, now) if isinstance(error, DeviceFailed) else []
        return [*off, *parts.poison.on_probe_failed(event, now)]

    def on_failed(self, event: TaskFailed, now: float) -> list[Action]:
        """Do a task again that raised, look into its rows, or give up."""
        parts, error = self._parts, event.error
        place = (event.generation, event.partition)
        if event.lost:  # it is committed when they are computed once more
            parts.partitions.lose(place, [number for number, _ in event.lost])
            failures = [TaskFailed("microbatch", place[1], number, why, place[0]) for number, why in event.lost]
            return [action for failure in failures for action in self.on_failed(failure, now)]
        if isinstance(error, ClaimLost):  # another member computes it, for it took us for dead
            return [IncidentRecord("claim-lost", describe(error)), self._abandon(place)]
        partition = parts.partitions[place]
        attempt = partition.count_attempt(event.step, event.number)
        if isinstance(error, StorageRefused):
            partition.excuse_attempt(event.step, event.number)
            return parts.retries.refuse(task_of(event), repeat(event, attempt, parts.partitions), error, now)
        damaged = isinstance(error, CorruptActivation)
        self.counters["corrupt_activations" if damaged else "task_failures"] += 1
        where = f"partition {event.partition}" + (f", microbatch {event.number}" if event.step == "microbatch" else "")
        if isinstance(error, DeviceFailed):
            actions = self._take_device_off(error, now)
        else:
            kind = "corrupt-activation" if damaged else "task-failed"
            detail = f"{where}, {event.step}, attempt {attempt}: {describe(error)}"
            actions = [parts.retries.book.begin(task_of(event), kind, detail, now)]
        if isinstance(error, DaskinferError) and not isinstance(error, CorruptActivation | DeviceFailed):
            return [*actions, Fail(error)]
        excused = partition.excused[event.step, event.number]
        if event.step == "microbatch" and blames_rows(error):
            if taken_out := parts.poison.raised(place, event.number, error, now):
                return [*actions, *taken_out]
        elif attempt - excused >= self._rules.limits.attempts:
            failure = JobFailed(f"{where}: {event.step} failed {attempt} times, at last with {describe(error)}")
            return [*actions, Fail(failure)]
        if event.step == "microbatch":
            self.counters["microbatches_recomputed"] += 1
        return [*actions, repeat(event, attempt, parts.partitions)]

    def check_budget(self) -> list[Action]:
        """Return what ends the run where more rows are quarantined, or known to be poisonous, than may be."""
        return self._parts.budget.check(self.poisonous)

    @property
    def poisonous(self) -> int:
        """Poisonous rows of partitions that are not committed yet; what only a trial refuses is the gate's affair."""
        rollout = self._parts.rollout
        generations = {generation for generation in rollout.pins if not rollout.is_on_trial(generation)}
        return self._parts.poison.identified_in(generations)

    def _take_device_off(self, error: DeviceFailed, now: float) -> list[Action]:
        why = f"lost its device: {error.message}"
        return self._parts.failures.take_off(error.worker, now, "device-failed", why)

    def _abandon(self, place: PartitionKey) -> Action:
        self._parts.poison.forget(place)
        return self._parts.partitions.abandon(place)
