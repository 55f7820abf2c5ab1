"""Faults on demand: make the filesystem behind a URL misbehave the way real stores do."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from daskinfer.storage.filesystem import open_filesystem

Call = Callable[[], Any]
Fault = Callable[[Call], Any]


def lose_acknowledgement(call: Call) -> Any:
    """Do it, then say that someone else's object is there: what a client's own retry makes of a lost answer."""
    call()
    raise FileExistsError("At least one of the pre-conditions you specified did not hold")


def break_connection(call: Call) -> Any:
    """Do it, then break the connection, so that the outcome is unknown."""
    call()
    raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")


def be_busy(call: Call) -> Any:
    """Do nothing and answer 409 or 503."""
    raise OSError(errno.EBUSY, "Please reduce your request rate")


def be_full(call: Call) -> Any:
    """Do nothing: no space is left."""
    raise OSError(errno.ENOSPC, "No space left on device")


def deny(call: Call) -> Any:
    """Do nothing: the credentials do not allow it."""
    raise PermissionError(errno.EACCES, "Access Denied")


def cut_short(call: Call) -> Any:
    """Give all but the last byte, or the last name."""
    return call()[:-1]


class FaultyFS:
    """Within this context, calls of one method of a URL's filesystem go wrong.

    fsspec keeps one instance for each store and thread, so everything that this thread does with the store is hit.

    Parameters
    ----------
    url
        Any URL of the store; local paths are reached for reading and listing only.
    method
        fsspec method, e.g. `pipe_file`, `cat_file`, `ls`.
    fault
        What happens instead of the call.
    times
        How many calls are hit.
    after
        How many calls pass before.
    """

    def __init__(self, url: str, method: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        self.hits = 0
        self._filesystem, _ = open_filesystem(url)
        self._method = method
        self._fault = fault
        self._window = range(after, after + times)
        self._calls = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._overridden = self._method in vars(self._filesystem)
        self._original = getattr(self._filesystem, self._method)
        setattr(self._filesystem, self._method, self._intercept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._overridden:
            setattr(self._filesystem, self._method, self._original)
        else:
            delattr(self._filesystem, self._method)

    def _intercept(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            hit = self._calls in self._window
            self._calls += 1
            self.hits += hit
        if hit:
            return self._fault(lambda: self._original(*args, **kwargs))
        return self._original(*args, **kwargs)
