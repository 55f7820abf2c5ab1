"""The run journal: what happened in a job, event by event, readable while it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from daskinfer.errors import Conflict, IntegrityError
from daskinfer.ids import canonical_json, parse_json
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import list_names, read_record
from daskinfer.storage.objects.urls import join_url

_NAME = re.compile(r"(\d{4,})-(?:(\w+)-)?(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""

    at: float
    """Seconds since the run began."""
    kind: str
    """What, in a word: partition-committed, worker-lost ..."""
    detail: dict[str, Any] = field(default_factory=dict)
    """JSON-like facts about it."""
    epoch: int = 0
    """Which life of the job's drivers saw it; the journal fills it in."""


class Journal:
    """The journal of one epoch, in numbered objects `journal/<epoch>-<number>.jsonl`, each created exclusively.

    Members that share an epoch write `<epoch>-<member>-<number>.jsonl`.

    Parameters
    ----------
    url
        Folder of the job.
    epoch
        Life of the driver that writes.
    member
        Its id, where others share that life.
    events
        How many events are held back at most.
    seconds
        For how long, in the time that the events carry.

    Examples
    --------
    >>> journal = Journal("jobs/j1", epoch=1, seconds=5.0)
    >>> journal.append(Event(0.5, "worker-lost", {"worker": "tcp://10.0.0.7:8786"}))
    >>> list_names("jobs/j1/journal")
    []
    >>> journal.append(Event(5.5, "partition-committed", {"partition": 3}))
    >>> list_names("jobs/j1/journal")
    ['0001-000000.jsonl']
    """

    def __init__(self, url: str, epoch: int, member: str = "", events: int = 512, seconds: float = 5.0) -> None:
        self._folder = join_url(url, "journal")
        self._prefix = f"{epoch:04d}-{f'{member}-' if member else ''}"
        self._events = events
        self._seconds = seconds
        self._number = 0
        self._held: list[Event] = []

    def append(self, event: Event) -> None:
        """Take an event; write it with those before it when enough have come or the first is old enough."""
        self._held.append(event)
        self.keep_up(event.at)

    def keep_up(self, at: float) -> None:
        """Write what is held back if it is many events, or the first is old enough `at` seconds since the run began."""
        if self._held and (len(self._held) >= self._events or at - self._held[0].at >= self._seconds):
            self.flush()

    def flush(self) -> None:
        """Write the events held back. If that fails they are kept for the next time.

        Raises
        ------
        Conflict
            Another process writes the journal of this epoch.
        """
        if not self._held:
            return
        lines = [canonical_json({"at": event.at, "kind": event.kind, **event.detail}) for event in self._held]
        url = join_url(self._folder, f"{self._prefix}{self._number:06d}.jsonl")
        if not create(url, b"\n".join(lines) + b"\n"):
            raise Conflict(f"{url} was written by another process", hint="Two drivers run this job; stop one of them.")
        self._number += 1
        self._held.clear()


def read_journal(url: str) -> Iterator[Event]:
    """Yield the events of the job in the folder `url`, oldest first, all epochs, and members, after one another.

    Raises
    ------
    IntegrityError
        Where a line is not an event.

    Examples
    --------
    >>> journal = Journal("jobs/j1", epoch=1)
    >>> journal.append(Event(0.5, "partition-committed", {"partition": 3}))
    >>> journal.flush()
    >>> list(read_journal("jobs/j1"))
    [Event(at=0.5, kind='partition-committed', detail={'partition': 3}, epoch=1)]
    """
    folder = join_url(url, "journal")
    matches = [match for name in list_names(folder) if (match := _NAME.fullmatch(name))]
    for match in sorted(matches, key=lambda match: (int(match[1]), match[2] or "", int(match[3]))):
        place = join_url(folder, match[0])
        for number, line in enumerate(read_record(place).splitlines(), start=1):
            try:
                detail = parse_json(line)
                yield Event(detail.pop("at"), detail.pop("kind"), detail, int(match[1]))
            except (ValueError, KeyError, AttributeError) as error:
                raise IntegrityError(
                    f"{place}, line {number} is not an event", hint="It was damaged or changed by hand: put it back."
                ) from error
