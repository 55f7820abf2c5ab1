"""Showing that a process lives: a record that it writes again and again."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from daskinfer.errors import DaskinferError
from daskinfer.spec.job.record import Progress


class Beating(ABC):
    """A process that beats in a thread of its own from `_start` until `release`.

    Examples
    --------
    >>> class Told(Beating):
    ...     def _write(self, released: bool) -> None:
    ...         print("it left" if released else "it lives")
    >>> told = Told()
    >>> told._start("told", seconds=60)
    >>> told.release()
    it left
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._counter = 0
        self._failure: Exception | None = None
        self._stopping = threading.Event()

    @property
    def trouble(self) -> str | None:
        """Why the last heartbeat could not be written; None while all is well."""
        failure = self._failure
        return None if failure is None else f"{type(failure).__name__}: {failure}"

    def show(self, progress: Progress) -> None:
        """Let the next heartbeat carry `progress`."""
        self._progress = progress

    def release(self) -> None:
        """Stop, and say so in a last heartbeat, so that nobody need wait. A second call does nothing."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._beat(released=True)

    @abstractmethod
    def _write(self, released: bool) -> None:
        """Write the record, with the counter and the progress as they are."""

    def _start(self, name: str, seconds: float) -> None:
        self._thread = threading.Thread(target=self._keep_beating, args=(seconds,), name=name, daemon=True)
        self._thread.start()

    def _keep_beating(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            self._beat(released=False)

    def _beat(self, released: bool) -> None:
        self._counter += 1
        try:
            self._write(released)
            self._failure = None
        except (DaskinferError, OSError) as error:  # a store that is away for a minute must not end hours of work
            self._failure = error
