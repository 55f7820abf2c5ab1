"""Microbatches that raise, hang or kill their worker: the part of the driver's logic that finds the rows to blame.

A microbatch under suspicion is taken out of the flow and its parts are computed one after the other. One that raised or
hung was observed to: its parts are probed beside everything else. A worker that dies says only what was assigned to it: a
microbatch that is blamed for that is probed while nothing else is in flight.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from daskinfer.errors import DaskinferError, JobFailed
from daskinfer.graphs.blame import find_place
from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import (
    Action,
    Fail,
    IncidentRecord,
    Inspect,
    Probe,
    RecordPoison,
    Withdraw,
    describe,
)
from daskinfer.runtime.protocol.events import Inspected, PoisonRecorded, ProbeDone, ProbeFailed
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.runtime.state_machine.faults.poison_bisection import Bisection
from daskinfer.runtime.state_machine.faults.suspects import Failure, MicrobatchHistory, Suspect
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.spec.job.poison import FailedAttempt, PoisonRecord, PoisonRow
from daskinfer.spec.rows import Fault

SUSPECT: dict[Fault, int] = {"raised": 2, "killed": 2, "hung": 1}
"""Failures of a microbatch, of one kind, before it is taken out of the flow. A hang costs minutes, and is never a guess."""
AT_ONCE = 4
"""Microbatches that may be searched beside the normal flow at one time."""
HOPELESS_ROWS = 8
"""Rows identified before anything ever went through: then it is the model."""
HOPELESS_MICROBATCHES = 3
"""The same for microbatches of which no row is left, one after the other, with nothing going through in between."""

# What another attempt would say otherwise.
_PASSING = re.compile(r"0x[0-9a-f]+|\b(?:tcp|tls|ucx|inproc)://\S+", re.IGNORECASE)
_NOT_OF_ROWS = ("KilledWorker", "FutureCancelledError", "CommClosedError")

MicrobatchKey = tuple[PartitionKey, int]
"""A microbatch: ((generation, partition), number)."""


def blames_rows(error: BaseException) -> bool:
    """Whether an error of a microbatch may be the fault of its rows: not the store's, Dask's or daskinfer's own.

    Examples
    --------
    >>> blames_rows(ValueError("bad token")), blames_rows(MemoryError()), blames_rows(OSError("disk"))
    (True, True, False)
    """
    return not isinstance(error, DaskinferError | OSError) and type(error).__name__ not in _NOT_OF_ROWS


class PoisonDetector:
    """Which microbatches are suspected, what is probed next, and which rows are identified.

    Parameters
    ----------
    partitions
        The driver's partitions.
    known
        Poison records of earlier runs.
    gives_up
        Whether a model that breaks on every row that it is given first ends the job.
    attempts
        Probes of a microbatch that may fail through no fault of its rows.

    Examples
    --------
    >>> partitions = PartitionTracker(window=2, waiting=iter([(None, 0)]), left=1)
    >>> detector = PoisonDetector(partitions)
    >>> detector.go_on(), detector.identified_in({0})
    ([], 0)
    """

    def __init__(
        self, partitions: PartitionTracker, known: Iterable[PoisonRecord] = (), gives_up: bool = True, attempts: int = 3
    ) -> None:
        self._partitions = partitions
        self._attempts = attempts
        self._gives_up = gives_up
        self._known = {
            ((found.generation, found.partition), found.microbatch): frozenset(found.positions) for found in known
        }
        self._records: defaultdict[MicrobatchKey, MicrobatchHistory] = defaultdict(MicrobatchHistory)
        self._suspects: dict[MicrobatchKey, Suspect] = {}
        self._identified: Counter[PartitionKey] = Counter()
        self._has_passed = False
        self._barren_rows = 0
        self._barren_microbatches = 0

    def identified_in(self, generations: Collection[int]) -> int:
        """Return how many rows of partitions that are not committed are identified, on these generations."""
        return sum(count for place, count in self._identified.items() if place[0] in generations)

    # What happens

    def passed(self, place: PartitionKey, number: int) -> None:
        """Take in that a microbatch went through in the normal flow."""
        self._records.pop((place, number), None)
        self._note_pass()

    def raised(self, place: PartitionKey, number: int, error: BaseException, now: float) -> list[Action]:
        """Take in that a microbatch in the normal flow raised; nothing is returned where it may be tried again."""
        stage, worker = find_place(error)
        failure = Failure(self._partitions[place].starts[number], stage, worker, "raised", describe(error), now)
        return self._mark((place, number), failure)

    def lost(self, worker: str, tasks: Iterable[StageTask], now: float) -> list[Action] | None:
        """Take in that a worker died with these tasks; return what to do, or None where none can have done it."""
        blamed: dict[MicrobatchKey, StageTask] = {}
        tried = set()
        for task in tasks:
            case = ((task.generation, task.partition), task.number)
            suspect = self._suspects.get(case)
            # An attempt that was taken back may still be there.
            if suspect is not None and suspect.attempt == task.attempt:
                tried.add(case)
                blamed[case] = task
            elif self._partitions.is_flying(*case):
                blamed[case] = task
        actions: list[Action] = []
        for case, task in blamed.items():
            detail = f"{worker} died in stage {task.stage}, with {len(blamed)} microbatches assigned to it"
            failure = Failure(task.attempt, task.stage, worker, "killed", detail, now)
            if case not in tried:
                actions += self._mark(case, failure)
                continue
            if len(blamed) == 1:
                actions += self._probe_failed(case, failure, "it killed the worker that computed it")
            else:
                # Any of them may have done it: try again with nothing else in flight.
                actions.append(self._withdraw(case))
                self._suspects[case].alone, self._suspects[case].attempt = True, None
        return actions if blamed else None

    def hung(self, task: StageTask, limit: float, now: float) -> list[Action]:
        """Take in that a task ran out of time."""
        place, number = (task.generation, task.partition), task.number
        detail = f"it ran for {task.seconds or 0:.0f} s in stage {task.stage} on {task.worker}"
        failure = Failure(task.attempt, task.stage, task.worker, "hung", detail, now)
        suspect = self._suspects.get((place, number))
        if suspect is not None:
            if suspect.attempt != task.attempt:
                return []
            return self._probe_failed((place, number), failure, f"the model did not end within {limit:g} s")
        return self._mark((place, number), failure) if self._partitions.is_flying(place, number) else []

    def on_inspected(self, event: Inspected, now: float) -> list[Action]:
        """Take in which rows a suspect has."""
        suspect = self._suspects.get(_case_of(event))
        if suspect is not None:
            suspect.search = Bisection(event.rows, suspect.fault)
        return []

    def on_probe_done(self, event: ProbeDone, now: float) -> list[Action]:
        """Take in that a part of a suspect's rows went through."""
        suspect = self._suspects.get(_case_of(event))
        if suspect is None:
            return []
        assert suspect.search is not None
        self._note_pass()
        suspect.attempt = None
        suspect.search.passed()
        return self._decide(_case_of(event), now) if suspect.search.is_decided else []

    def on_probe_failed(self, event: ProbeFailed, now: float) -> list[Action]:
        """Take in that a probe raised, whether through its rows or not."""
        case, error = _case_of(event), event.error
        suspect = self._suspects.get(case)
        if suspect is None:
            return []
        if blames_rows(error) and suspect.attempt is not None:
            stage, worker = find_place(error)
            failure = Failure(suspect.attempt, stage, worker, "raised", describe(error), now)
            return self._probe_failed(case, failure, "the model raised " + _PASSING.sub("...", describe(error)))
        suspect.attempt = None
        suspect.mishaps += 1
        if suspect.mishaps < self._attempts:
            return []
        return [Fail(JobFailed(f"{_name(case)}: it failed {self._attempts} times, at last with {describe(error)}"))]

    def on_recorded(self, event: PoisonRecorded, now: float) -> list[Action]:
        """Go on without the rows that are written down as poisonous."""
        return self._recorded(event.poison_record)

    def again(self, event: ProbeFailed) -> Probe | None:
        """Return what probes the same once more; None where nobody waits for it."""
        case = _case_of(event)
        suspect = self._suspects.get(case)
        return None if suspect is None or suspect.search is None else self._probe(case, suspect, suspect.search)

    def strand(self, place: PartitionKey, microbatches: Collection[int]) -> list[Action]:
        """Take in that tasks of these microbatches never end: those of suspects among them are started again."""
        actions: list[Action] = []
        for number in microbatches:
            suspect = self._suspects.get((place, number))
            if suspect is not None and suspect.search is None:
                actions.append(Inspect(place[1], number, place[0]))
            elif suspect is not None:
                suspect.attempt = None
        return actions

    def _recorded(self, poison_record: PoisonRecord) -> list[Action]:
        case = ((poison_record.generation, poison_record.partition), poison_record.microbatch)
        suspect = self._suspects.pop(case, None)
        if suspect is None:
            return []
        self._known[case] = frozenset(poison_record.positions)
        self._records.pop(case, None)
        assert suspect.search is not None
        if self._known[case] == suspect.search.identified.keys():
            return self._partitions.computed_apart(*case)
        self._identified[case[0]] += len(self._known[case]) - len(suspect.search.identified)
        return [
            IncidentRecord("poison", f"{_name(case)}: another driver has decided on its rows"),
            self._partitions.again(*case),
        ]

    def forget(self, place: PartitionKey) -> None:
        """Forget a partition that is committed."""
        self._identified.pop(place, None)
        for case in [case for case in (*self._suspects, *self._records, *self._known) if case[0] == place]:
            self._suspects.pop(case, None)
            self._records.pop(case, None)
            self._known.pop(case, None)

    def go_on(self) -> list[Action]:
        """Start what may be probed now, and hold the normal flow where a probe must be alone."""
        actions: list[Action] = []
        under_way = sum(suspect.attempt is not None for suspect in self._suspects.values())
        self._partitions.hold(any(suspect.alone for suspect in self._suspects.values()))
        for case, suspect in self._suspects.items():
            if suspect.attempt is not None or suspect.search is None or suspect.search.is_decided:
                continue
            if under_way >= AT_ONCE or (suspect.alone and (under_way or self._partitions.in_flight)):
                break
            under_way += 1
            actions.append(self._probe(case, suspect, suspect.search))
            if suspect.alone:
                break
        return actions

    # What follows

    def _mark(self, case: MicrobatchKey, failure: Failure) -> list[Action]:
        record = self._records[case]
        record.marks[failure.what] += 1
        record.failures.append(failure)
        if record.marks[failure.what] < SUSPECT[failure.what]:
            return []
        if case in self._known:
            error = JobFailed(
                f"{_name(case)} {failure.what} although {len(self._known[case])} of its rows are left out: "
                f"{failure.detail}",
                hint="Delete its file in the job's folder poison/ to have it searched again.",
            )
            return [Fail(error)]
        is_killer = failure.what == "killed"
        self._partitions.withhold(*case)
        self._suspects[case] = Suspect(None if is_killer else failure.what, alone=is_killer)
        (generation, partition), number = case
        note = IncidentRecord("suspect", f"{_name(case)} {failure.what}: {failure.detail}; its rows are looked into")
        return [note, self._withdraw(case), Inspect(partition, number, generation)]

    def _probe(self, case: MicrobatchKey, suspect: Suspect, search: Bisection) -> Probe:
        (generation, partition), number = case
        suspect.attempt = self._partitions[case[0]].next_attempt(case[1])
        return Probe(partition, number, search.without, suspect.attempt, generation)

    def _probe_failed(self, case: MicrobatchKey, failure: Failure, error: str) -> list[Action]:
        suspect = self._suspects[case]
        assert suspect.search is not None
        failure.rows, suspect.attempt = len(suspect.search.part), None
        self._records[case].failures.append(failure)
        actions: list[Action] = [self._withdraw(case)]
        verdict = suspect.search.failed(failure.what, error)
        if verdict is not None:
            actions += self._identify(case, verdict, failure)
        if suspect.search.is_stuck:
            actions.append(Fail(_not_of_rows(case, failure)))
        elif suspect.search.is_decided:
            actions += self._decide(case, failure.at)
        return actions

    def _identify(self, case: MicrobatchKey, verdict: PoisonRow, failure: Failure) -> list[Action]:
        self._identified[case[0]] += 1
        self._barren_rows += 1
        actions: list[Action] = [
            IncidentRecord("poison", f"{_name(case)}, row {verdict.row} of the partition: {verdict.error}")
        ]
        if self._gives_up and not self._has_passed and self._barren_rows >= HOPELESS_ROWS:
            actions.append(Fail(_hopeless(f"each of the first {self._barren_rows} rows that were tried", failure)))
        return actions

    def _decide(self, case: MicrobatchKey, now: float) -> list[Action]:
        suspect = self._suspects[case]
        search = suspect.search
        assert search is not None
        record = self._records[case]
        if not search.identified:
            del self._suspects[case]
            self._records.pop(case)
            note = IncidentRecord("acquitted", f"{_name(case)}: all of its rows went through")
            return [note, *self._partitions.computed_apart(*case)]
        if len(search.identified) == len(search.rows):
            self._barren_microbatches += 1
            if self._gives_up and self._barren_microbatches >= HOPELESS_MICROBATCHES:
                what = f"every row of {self._barren_microbatches} microbatches, one after the other,"
                return [Fail(_hopeless(what, record.failures[-1]))]
        (generation, partition), number = case
        attempts = tuple(
            FailedAttempt(
                attempt=failure.attempt,
                rows=failure.rows,
                stage=failure.stage,
                worker=failure.worker,
                what=failure.what,
                detail=failure.detail,
                before=round(now - failure.at, 3),
            )
            for failure in record.failures
        )
        rows = tuple(search.identified[row] for row in sorted(search.identified))
        found = PoisonRecord(
            generation=generation,
            partition=partition,
            microbatch=number,
            of=len(search.rows),
            rows=rows,
            attempts=attempts,
        )
        return [RecordPoison(found)]

    def _withdraw(self, case: MicrobatchKey) -> Action:
        (generation, partition), number = case
        return Withdraw(partition, number, generation)

    def _note_pass(self) -> None:
        self._has_passed, self._barren_rows, self._barren_microbatches = True, 0, 0


def _case_of(event: Inspected | ProbeDone | ProbeFailed) -> MicrobatchKey:
    return (event.generation, event.partition), event.number


def _name(case: MicrobatchKey) -> str:
    return f"partition {case[0][1]}, microbatch {case[1]}"


def _hopeless(what: str, failure: Failure) -> JobFailed:
    return JobFailed(
        f"{what} {failure.what}, at last with: {failure.detail}",
        hint="It is the model or its workers that fail, not the rows; fix that and run the same command again.",
    )


def _not_of_rows(case: MicrobatchKey, failure: Failure) -> JobFailed:
    return JobFailed(
        f"{_name(case)} {failure.what} as a whole, although all of its rows went through in parts: {failure.detail}",
        hint="It may be too large for a worker's memory or time: lower pipeline.microbatch_tokens, or raise "
        "errors.microbatch_seconds.",
    )
