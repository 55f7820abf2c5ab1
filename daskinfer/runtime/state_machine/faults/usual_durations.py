"""How long things usually take, and what takes far longer. Pure."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 64
"""As many of the last ones say what is usual."""
ENOUGH = 8
"""Fewer say nothing."""
TIMES = 10.0
"""So many times the usual is far longer,"""
LEAST = 5.0
"""if it is so many seconds more."""


class UsualDurations:
    """UsualDurations of one job's reads and commits, by kind.

    Examples
    --------
    >>> durations = UsualDurations()
    >>> for _ in range(ENOUGH):
    ...     _ = durations.judge("read", 1.0)
    >>> durations.judge("read", 5.0), durations.judge("read", 60.0)
    (None, 1.0)
    """

    def __init__(self) -> None:
        self._last: dict[str, deque[float]] = {}

    def judge(self, kind: str, seconds: float) -> float | None:
        """Take a duration; return what was usual so far where it is far longer than that."""
        last = self._last.setdefault(kind, deque(maxlen=REMEMBERED))
        usual = median(last) if len(last) >= ENOUGH else None
        last.append(seconds)
        return usual if usual is not None and seconds > max(TIMES * usual, usual + LEAST) else None
