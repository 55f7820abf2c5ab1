"""From looks at tasks that wait for their inputs to links that are cut. Pure: whoever looks also tries the links.

A task is given to a worker when its inputs are there, on whatever workers; the worker then fetches them. That it has not
got them for a while proves nothing: it may be slow, busy or short of memory. So it is asked whether it can connect to
those that hold them, and it is told of a link that it cannot only when both of its ends have been heard of since: a host
that is down is not cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from daskinfer.runtime.protocol.events import LinkRestored, NetworkCut
from daskinfer.runtime.protocol.keys import Link, ends_of, host_of

STALLED_LOOKS = 5
"""Looks at which a task lacks the same inputs, until its worker is asked; and again after each so many more."""
MENDING_LOOKS = 10
"""Looks between two tries of a link that was cut."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A task that is assigned to a worker which has not got all of its inputs."""

    task: object
    worker: str
    holders: frozenset[str]
    """Workers that hold the others."""


@dataclass(slots=True)
class _Stall:
    holders: frozenset[str]
    since: float
    looks: int = 0


@dataclass(slots=True)
class _Failed:
    since: float
    """When somebody began to wait for the link."""
    at: float | None = None
    """Time of the first look after the try."""


class Stalls:
    """What waits, which links are to be tried, and which are cut, as plain state.

    Examples
    --------
    >>> stalls, waits = Stalls(), [Wait("task", "tcp://b:1", frozenset({"tcp://a:1"}))]
    >>> for second in range(STALLED_LOOKS):
    ...     cut = stalls.take(second, dict.fromkeys(["tcp://a:1", "tcp://b:1"], second), waits)
    >>> cut, stalls.due
    ([], {('tcp://b:1', 'tcp://a:1')})
    """

    def __init__(self) -> None:
        self._looks = 0
        self._stall_detector: dict[tuple[object, str], _Stall] = {}
        self._since: dict[Link, float] = {}
        self._failed: dict[Link, _Failed] = {}
        self._cut: dict[frozenset[str], Link] = {}
        self._again: dict[Link, Link] = {}

    @property
    def due(self) -> set[Link]:
        """Links that are to be tried after this look."""
        return self._since.keys() | self._again.keys()

    def take(self, at: float, seen: Mapping[str, float], waits: Iterable[Wait]) -> list[NetworkCut]:
        """Take in a look, and return what is certain by now.

        Parameters
        ----------
        at
            When it was, by the scheduler's clock.
        seen
            Workers that are connected -> when they were last heard of, by the same clock.
        waits
            Tasks that lack inputs.
        """
        self._looks += 1
        stalls = {}
        for wait in waits:
            stall = self._stall_detector.get((wait.task, wait.worker))
            if stall is None or stall.holders != wait.holders:
                stall = _Stall(wait.holders, at)
            stall.looks += 1
            stalls[wait.task, wait.worker] = stall
        self._stall_detector = stalls
        self._since = {}
        for (_, worker), stall in stalls.items():
            if stall.looks % STALLED_LOOKS == 0:
                for link in ((worker, holder) for holder in stall.holders):
                    # Whoever has been silent all the while is frozen or gone, and would not answer.
                    if all(seen.get(end, 0.0) > stall.since for end in link):
                        self._since[link] = min(stall.since, self._since.get(link, at))
        tries = ((_stand_in(told, seen), told) for told in self._cut.values() if self._looks % MENDING_LOOKS == 0)
        self._again = {link: told for link, told in tries if link is not None}
        return self._confirm(at, seen)

    def hear(self, answers: Mapping[Link, bool]) -> list[LinkRestored]:
        """Take in which of the links that were due are there; of some there may be no answer."""
        corrected = []
        for link, is_there in answers.items():
            if not is_there:
                if link in self._since:
                    self._failed.setdefault(link, _Failed(self._since[link]))
                continue
            self._failed.pop(link, None)
            if (told := self._again.get(link)) is not None:
                del self._cut[ends_of(told)]
                corrected.append(LinkRestored(told))
        return corrected

    def _confirm(self, at: float, seen: Mapping[str, float]) -> list[NetworkCut]:
        certain: list[Link] = []
        since = at
        for link, failed in list(self._failed.items()):
            if not seen.keys() >= set(link):
                del self._failed[link]
            elif failed.at is None:
                failed.at = at
            elif min(seen[worker] for worker in link) > failed.at:
                del self._failed[link]
                self._cut.setdefault(ends_of(link), link)
                certain.append(link)
                since = min(since, failed.since)
        return [NetworkCut(tuple(certain), at - since)] if certain else []


def _stand_in(told: Link, workers: Iterable[str]) -> Link | None:
    """Return the link, or one between the same two hosts where its workers are gone."""
    found = []
    for worker in told:
        names = {worker} if worker in ends_of(told) else {host_of(worker)}
        there = [other for other in workers if names & {other, host_of(other)}]
        if not there:
            return None
        found.append(worker if worker in there else min(there))
    return (found[0], found[1])
