"""Incidents that are not over yet, and how long it took to get over them. Pure: the clock is the caller's."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from itertools import count

from daskinfer.runtime.protocol.actions import IncidentRecord, Recovered


class IncidentLog:
    """Open incidents by what they happened to: a stage that lost a worker, a task, a store.

    Examples
    --------
    >>> log = IncidentLog()
    >>> _ = log.begin("store", "storage-refused", "503", now=10.0)
    >>> log.is_open("store"), log.end("store", now=12.5), log.is_open("store")
    (True, [Recovered(number=0, seconds=2.5)], False)
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._open: dict[Hashable, deque[tuple[int, float]]] = {}

    def begin(
        self, what: Hashable, kind: str, detail: str, now: float, detect_seconds: float | None = None
    ) -> IncidentRecord:
        """Open an incident; return what tells of it.

        Parameters
        ----------
        what
            What it happened to; there may be several of one thing.
        kind, detail
            For the report.
        now
            When it was detected.
        detect_seconds
            How long that took, where it can be told.
        """
        number = next(self._numbers)
        self._open.setdefault(what, deque()).append((number, now))
        return IncidentRecord(kind, detail, number, detect_seconds)

    def is_open(self, what: Hashable) -> bool:
        """Whether anything has happened to it that is not over."""
        return what in self._open

    def of(self, beginning: tuple[Hashable, ...]) -> list[Hashable]:
        """Return the things with open incidents whose names begin so."""
        return [what for what in self._open if isinstance(what, tuple) and what[: len(beginning)] == beginning]

    def move(self, what: Hashable, to: Hashable) -> None:
        """Close the incidents of one key together with those of another."""
        if what in self._open:
            self._open.setdefault(to, deque()).extend(self._open.pop(what))

    def end(self, what: Hashable, now: float) -> list[Recovered]:
        """Close the oldest incident of a thing, if there is one."""
        if what not in self._open:
            return []
        number, since = self._open[what].popleft()
        if not self._open[what]:
            del self._open[what]
        return [Recovered(number, now - since)]
