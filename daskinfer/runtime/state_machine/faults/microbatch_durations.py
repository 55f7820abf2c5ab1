"""How long microbatches take: when one counts as hung, and when it is worth a second start. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from statistics import median
from typing import Literal

from daskinfer.graphs.build import StageTask

HUNG_FACTOR = 20
"""`auto`: times that a microbatch may take as long as is usual in its stage ..."""
HUNG_SECONDS = 60.0
"""... but never less than this ..."""
UNKNOWN_SECONDS = 1800.0
"""... and this while nothing is known yet."""
SLOW_FACTOR = 4
"""Times as long as usual that make a microbatch a straggler ..."""
SLOW_SECONDS = 10.0
"""... but never less than this."""
KNOWN = 8
"""Microbatches that must have gone through before the lack of long ones tells that all are short."""
_REMEMBERED = 64

_Key = tuple[int, int, int, int, int]


class TaskDurations:
    """Learns how long microbatches of a stage take from looks at what is running; all have about as many tokens.

    Parameters
    ----------
    limit
        Seconds that a microbatch may take in a stage; `auto` goes by what is usual, None sets no limit.

    Examples
    --------
    >>> durations = TaskDurations("auto")
    >>> durations.limit(0), durations.is_slow(StageTask(0, 0, 0, 0, stage=0, seconds=100.0))
    (1800.0, False)
    >>> for number in range(KNOWN):
    ...     durations.note_done()
    >>> durations.limit(0), durations.is_slow(StageTask(0, 0, 0, 0, stage=0, seconds=100.0))
    (60.0, True)
    """

    def __init__(self, limit: float | Literal["auto"] | None) -> None:
        self._limit = limit
        self._durations: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._seen: dict[_Key, StageTask] = {}
        self._counts: Counter[int] = Counter()
        self._done = 0

    def note_done(self) -> None:
        """Take in that a microbatch went through all stages."""
        self._done += 1

    def look(self, tasks: Sequence[StageTask]) -> None:
        """Take in what is running now. What ran at the last look and does not any more has taken that long."""
        running = {_key(task): task for task in tasks if task.seconds is not None}
        for key, task in self._seen.items():
            if key not in running and task.seconds is not None:
                self._durations[task.stage].append(task.seconds)
                self._counts[task.stage] += 1
        self._seen = running

    def drop(self, task: StageTask) -> None:
        """Learn nothing from a task that is stopped."""
        self._seen.pop(_key(task), None)

    def limit(self, stage: int) -> float | None:
        """Return the seconds after which a microbatch counts as hung; None for never."""
        if self._limit != "auto":
            return self._limit
        usual = self._usual(stage)
        return UNKNOWN_SECONDS if usual is None else max(HUNG_SECONDS, HUNG_FACTOR * usual)

    def is_slow(self, task: StageTask) -> bool:
        """Whether a microbatch runs far beyond what is usual."""
        usual = self._usual(task.stage)
        if usual is None or task.seconds is None:
            return False
        return task.seconds > max(SLOW_SECONDS, SLOW_FACTOR * usual)

    def _usual(self, stage: int) -> float | None:
        # Whatever is over between two looks is never seen.
        if self._done >= KNOWN and self._done > 2 * self._counts[stage]:
            return 0.0
        return median(self._durations[stage]) if self._durations[stage] else None


def _key(task: StageTask) -> _Key:
    return (task.generation, task.partition, task.number, task.attempt, task.stage)
