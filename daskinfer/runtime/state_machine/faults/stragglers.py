"""Microbatches that run too long: their workers are restarted, or they are started a second time elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import Abandon, Action, IncidentRecord, SpeculativeAttempt
from daskinfer.runtime.state_machine.faults.microbatch_durations import TaskDurations
from daskinfer.runtime.state_machine.faults.poison_detector import PoisonDetector
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment


class Stragglers:
    """What to do about microbatches that take long.

    One that runs beyond the time limit is hung: a thread cannot be stopped, so its worker is restarted, and its rows
    are looked into. One that takes far longer than usual is started a second time on another worker of its stage, with
    whatever waits behind it; the first to finish counts.

    Parameters
    ----------
    workers, partitions, poison
        The driver's workers, partitions and suspects.
    durations
        What is usual.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules, make_worker
    >>> workers, partitions = WorkerAssignment(make_rules().requirements), PartitionTracker(2, iter([]), 0)
    >>> _ = workers.enlist([make_worker("a"), make_worker("b")])
    >>> stragglers = Stragglers(workers, partitions, PoisonDetector(partitions), TaskDurations(limit=60.0))
    >>> stragglers.look([StageTask(0, 0, 0, 0, stage=0, worker="a", seconds=30.0)], now=0.0)
    ({}, [])
    """

    def __init__(
        self, workers: WorkerAssignment, partitions: PartitionTracker, poison: PoisonDetector, durations: TaskDurations
    ) -> None:
        self._workers = workers
        self._partitions = partitions
        self._poison = poison
        self._durations = durations
        self._twice: set[tuple[int, int, int]] = set()

    def note_done(self, generation: int, partition: int, number: int) -> None:
        """Take in that a microbatch went through all stages."""
        self._durations.note_done()
        self._twice.discard((generation, partition, number))

    def look(self, tasks: Sequence[StageTask], now: float) -> tuple[dict[str, str], list[Action]]:
        """Take in what is running, and what waits behind it; return workers to restart, with the reason, and the rest."""
        self._durations.look(tasks)
        actions: list[Action] = []
        hung: dict[str, str] = {}
        slow: set[str] = set()
        for task in tasks:
            limit = self._durations.limit(task.stage)
            if task.seconds is None or task.worker not in self._workers or task.worker in hung:
                continue
            if limit is not None and task.seconds > limit:
                actions += self._poison.hung(task, limit, now)
                for other in self._twins(task, tasks):
                    self._durations.drop(other)
                    actions.append(Abandon(other))
                    where = f"partition {other.partition}, microbatch {other.number}"
                    hung[other.worker] = f"has been running {where} for {other.seconds:.0f} s"
            elif self._durations.is_slow(task):
                slow.add(task.worker)
        for task in tasks:
            if task.worker in slow and task.worker not in hung:
                actions += self._start_twice(task, slow)
        return hung, actions

    def _twins(self, task: StageTask, tasks: Sequence[StageTask]) -> list[StageTask]:
        """Return a hanging task, and its second start, which hangs by now as well or is about to."""
        return [other for other in tasks if _microbatch(other) == _microbatch(task) and other.seconds is not None]

    def _start_twice(self, task: StageTask, slow: set[str]) -> list[Action]:
        generation, partition, number = found = _microbatch(task)
        place = (generation, partition)
        if found in self._twice or not self._partitions.is_flying(place, number):
            return []
        others = [worker for worker in self._workers.ready(generation, task.stage) if worker not in slow]
        if not others:
            return []
        self._twice.add(found)
        why = "waits behind one that has" if task.seconds is None else f"has been running for {task.seconds:.0f} s,"
        where = f"partition {partition}, microbatch {number}, stage {task.stage} on {task.worker}"
        return [
            IncidentRecord(
                "straggler", f"{where} {why} far beyond what is usual; it is started a second time elsewhere"
            ),
            SpeculativeAttempt(
                partition, number, self._partitions[place].next_attempt(number), task.worker, generation
            ),
        ]


def _microbatch(task: StageTask) -> tuple[int, int, int]:
    return (task.generation, task.partition, task.number)
