"""What is decided when a worker is lost, or lives and cannot be used: its work goes to others. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from daskinfer.runtime.protocol.actions import Action, Fail, IncidentRecord, Restart
from daskinfer.runtime.protocol.events import LinkRestored, NetworkCut, WorkerFrozen, WorkerJoined, WorkerLost
from daskinfer.runtime.state_machine.failures import refuse_losses
from daskinfer.runtime.state_machine.faults.poison_detector import PoisonDetector
from daskinfer.runtime.state_machine.faults.reachability import Reachability
from daskinfer.runtime.state_machine.faults.retry_schedule import RetrySchedule
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.spec.plan import WorkerShape

# A hung microbatch is blamed itself; a link that is cut is one loss, however many workers it takes.
_COUNTED_APART = ("worker-hung", "network-cut")


class WorkerFailureHandler:
    """Removes lost workers, gives their work to others, and fails the job after loss upon loss.

    Parameters
    ----------
    workers, partitions, poison, recovery
        The driver's workers, partitions, suspects and incidents.
    limits
        When to give up.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules, make_worker
    >>> rules, partitions = make_rules(), PartitionTracker(2, iter([]), 0)
    >>> workers = WorkerAssignment(rules.requirements)
    >>> _ = workers.enlist([make_worker("a"), make_worker("b")])
    >>> retries = RetrySchedule(workers, partitions, paused=60.0, storage=300.0)
    >>> handler = WorkerFailureHandler(workers, partitions, PoisonDetector(partitions), retries, rules.limits)
    >>> [type(action).__name__ for action in handler.lost(WorkerLost("a"), now=1.0)], handler.workers_lost
    (['IncidentRecord'], 1)
    """

    def __init__(
        self,
        workers: WorkerAssignment,
        partitions: PartitionTracker,
        poison: PoisonDetector,
        recovery: RetrySchedule,
        limits: Limits,
    ) -> None:
        self._workers = workers
        self._partitions = partitions
        self._poison = poison
        self._retries = recovery
        self._limits = limits
        self.workers_lost = 0
        self._reachability = Reachability()
        self._since_commit = 0

    def note_commit(self) -> None:
        """Reset the count of losses: a partition was committed."""
        self._since_commit = 0

    def lost(self, event: WorkerLost, now: float, kind: str = "worker-lost", why: str = "is gone") -> list[Action]:
        """Deal with a worker that is lost; `kind` and `why` are for the report."""
        self._reachability.release(event.worker)
        stages = self._workers.lose(event.worker, now)
        if not stages:
            return self._workers.fill(now)
        self.workers_lost += 1
        blame = self._poison.lost(event.worker, event.tasks, now)
        self._since_commit += blame is None and kind not in _COUNTED_APART
        self._retries.lose(event.worker, stages[0])
        detail = f"{event.worker}, which held stage {' and '.join(map(str, stages))}, {why}"
        note = self._retries.book.begin(stages[0], kind, detail, now, event.silent)
        if self._since_commit > self._limits.losses:
            return [note, Fail(refuse_losses(self._since_commit, {number for _, number in self._partitions.open}))]
        return [note, *(blame or []), *self._workers.fill(now)]

    def take_off(self, worker: str, now: float, kind: str, why: str, seconds: float | None = None) -> list[Action]:
        """Deal with a worker that lives and is of no use as with one that is lost; it took `seconds` to find out."""
        if worker not in self._workers:
            return []
        return [Restart(worker), *self.lost(WorkerLost(worker, seconds), now, kind, why)]

    def freeze(self, event: WorkerFrozen, now: float) -> list[Action]:
        """Deal with a worker that is silent."""
        if event.silent < self._limits.silence(self._workers.is_busy_loading(event.worker)):
            return []
        why = f"was not heard of for {event.silent:.0f} s"
        return self.take_off(event.worker, now, "worker-frozen", why, event.silent)

    def end_pauses(self, now: float) -> list[Action]:
        """Deal with workers that have been paused for too long."""
        why = f"was paused for {self._limits.paused:.0f} s, its memory full"
        overdue = self._retries.overdue(now)
        return [action for worker in overdue for action in self.take_off(worker, now, "worker-lost", why)]

    # Links

    def cut(self, event: NetworkCut, now: float) -> list[Action]:
        """Deal with workers that do not reach each other."""
        self._reachability.note(event.links)
        posts = self._posts()
        off = self._reachability.choose(event.links, posts)
        actions: list[Action] = []
        for state in self._workers.roster():
            # What they did must not go to one that would be cut off as well.
            if not state.stages and state.does != "leaves":
                shape = self._workers.shape(state.worker)
                if note := self._isolate(shape, posts.keys() - off.keys()):
                    self._workers.lose(state.worker, now)
                    actions.append(note)
        self._since_commit += bool(off)
        for worker, why in off.items():
            actions += self.take_off(worker, now, "network-cut", why, event.seconds)
        return actions

    def correct(self, event: LinkRestored, now: float) -> list[Action]:
        """Take in that workers reach each other again."""
        self._reachability.correct(event.link)
        return self.admit(now)

    def join(self, event: WorkerJoined, now: float) -> list[Action]:
        """Take in a worker, unless it does not reach those that compute."""
        note = self._isolate(event.worker, self._posts())
        return [note] if note else self._workers.enlist([event.worker], now)

    def admit(self, now: float) -> list[Action]:
        """Let those work that sat out and reach all that compute now."""
        isolated = self._reachability.isolated_workers
        posts = self._posts() if isolated else {}
        able = [shape for shape in isolated if self._reachability.bars(shape.address, posts) is None]
        for shape in able:
            self._reachability.release(shape.address)
        return self._workers.enlist(able, now) if able else []

    def describe_missing(self, stage: int) -> str:
        """Say what a stage without a worker needs, and who is there and cannot have it."""
        isolated = (self._describe_isolated(shape.address) for shape in self._reachability.isolated_workers)
        return "; ".join([self._workers.wants.describe_missing(stage), *isolated])

    def _posts(self) -> dict[str, tuple[int, ...]]:
        """Return the workers that compute -> the stages."""
        return {state.worker: state.stages for state in self._workers.roster() if state.stages}

    def _isolate(self, worker: WorkerShape, posts: Iterable[str]) -> IncidentRecord | None:
        if self._reachability.bars(worker.address, posts) is None:
            return None
        self._reachability.isolate(worker)
        return IncidentRecord(
            "cut-off", f"{self._describe_isolated(worker.address)}, and gets nothing to do until it can"
        )

    def _describe_isolated(self, worker: str) -> str:
        return f"{worker} cannot reach {self._reachability.bars(worker, self._posts())}"
