"""Where requests to a running job arrive: its control log is read, and answered, beside everything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from daskinfer.errors import DaskinferError
from daskinfer.runtime.protocol.events import CancelAsked, DrainAsked, Event
from daskinfer.spec.job.control import ControlRecord
from daskinfer.storage.jobs.control_log import ControlLog

LOOK_SECONDS = 1.0


class ControlRequests:
    """A thread for the control log.

    Parameters
    ----------
    log
        The job's.
    epoch
        Life of the driver: what was asked of an earlier one is not for this one.
    tell
        Takes a function that gives the event.
    is_shared
        Whether other drivers share that life: each of them obeys, and only what is asked from now on.

    Examples
    --------
    >>> log, heard = ControlLog("work/jobs/demo"), []
    >>> number = log.ask_cancel(epoch=1)
    >>> requests = ControlRequests(log, 1, heard.append)
    >>> requests.look()
    >>> requests.close()
    >>> [type(tell()).__name__ for tell in heard]
    ['CancelAsked']
    """

    def __init__(
        self,
        log: ControlLog,
        epoch: int,
        tell: Callable[[Callable[[], Event | None]], None],
        is_shared: bool = False,
    ) -> None:
        self._is_shared = is_shared
        self._log = log
        self._epoch = epoch
        self._tell = tell
        self._next = 0
        self._is_new = is_shared
        self._owed: list[tuple[int, str]] = []
        self._looking: Future[None] | None = None
        self._due = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskinfer-control")

    def look(self) -> None:
        """Look, about once a second, whether something is asked."""
        if time.monotonic() >= self._due and (self._looking is None or self._looking.done()):
            self._due = time.monotonic() + LOOK_SECONDS
            self._looking = self._thread.submit(self._look)

    def answer(self, number: int, detail: str) -> None:
        """Say what became of a request."""
        self._owed.append((number, detail))
        self._thread.submit(self._pay)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()

    def _look(self) -> None:
        self._pay()
        # A store that is away for a minute must not end hours of work.
        try:
            found = list(self._log.read(self._next))
            # A driver that has lost its cluster reads from the start again.
            answered = set() if self._is_shared else {record.request for _, record in found if record.op == "done"}
            if self._is_new:
                self._is_new, self._next, found = False, len(found), []
            for number, record in found:
                self._next = number + 1
                if number not in answered and (event := self._read(number, record)) is not None:
                    self._hand_over(event)
        except (DaskinferError, OSError):
            return

    def _hand_over(self, event: Event) -> None:
        self._tell(lambda: event)

    def _read(self, number: int, record: ControlRecord) -> Event | None:
        if record.epoch < self._epoch:
            return None
        match record.op:
            case "cancel":
                return CancelAsked(number, record.by, record.at)
            case "drain":
                return DrainAsked(number, record.worker, record.by)
            case "done":
                return None

    def _pay(self) -> None:
        while self._owed:
            number, detail = self._owed[0]
            try:
                self._log.answer(self._epoch, number, detail)
            except (DaskinferError, OSError):
                return
            del self._owed[0]
