"""Faults on demand: make the filesystem behind a URL misbehave the way real stores do."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

from pytest import MonkeyPatch

from daskinfer.storage.objects import filesystem
from daskinfer.storage.objects.filesystem import find_filesystem, open_filesystem

Call = Callable[[], Any]
Fault = Callable[[Call], Any]


class Answer(Exception):
    """A status that a store answered with, as botocore tells it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def lose_acknowledgement(call: Call) -> Any:
    """Do it, then say that someone else's object is there: what a client's own retry makes of a lost answer."""
    call()
    raise FileExistsError("At least one of the pre-conditions you specified did not hold")


def break_connection(call: Call) -> Any:
    """Do it, then break the connection, so that the outcome is unknown."""
    call()
    raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")


def be_busy(call: Call) -> Any:
    """Do nothing and say so, in the words of a client that knows the answer."""
    raise OSError(errno.EBUSY, "Please reduce your request rate")


def answer_409(call: Call) -> Any:
    """Do nothing and answer 409, in the words of a client that does not know the code."""
    raise OSError(errno.EIO, "ConditionalRequestConflict") from Answer(409)


def answer_503(call: Call) -> Any:
    """Do nothing and answer 503, in the words of a client that does not know the code."""
    raise OSError(errno.EIO, "SlowDown") from Answer(503)


def be_full(call: Call) -> Any:
    """Do nothing: no space is left."""
    raise OSError(errno.ENOSPC, "No space left on device")


def deny(call: Call) -> Any:
    """Do nothing: the credentials do not allow it."""
    raise PermissionError(errno.EACCES, "Access Denied")


def cut_short(call: Call) -> Any:
    """Give all but the last byte, or the last name.

    Examples
    --------
    >>> cut_short(lambda: b"abc"), cut_short(lambda: ["a", "b"])
    (b'ab', ['a'])
    """
    return call()[:-1]


def hide_newest_slot(call: Call) -> Any:
    """List all but the last record of a slot log; other folders are listed as they are.

    No other listing may be stale: garbage collection believes what it says about locks. `daskinfer doctor` refuses
    stores that are worse.

    Examples
    --------
    >>> hide_newest_slot(lambda: ["log/000000000000.json", "log/000000000001.json"])
    ['log/000000000000.json']
    """
    names = sorted(call())
    return names[:-1] if names and names[-1].endswith(".json") and names[-1][-17:-5].isdigit() else names


def kill_before(call: Call) -> NoReturn:
    """Kill this process without doing it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def kill_after(call: Call) -> NoReturn:
    """Do it, then kill this process."""
    call()
    kill_before(call)


def delay(seconds: float) -> Fault:
    """Return a fault that does it late.

    Examples
    --------
    >>> delay(0.001)(lambda: "done")
    'done'
    """

    def fault(call: Call) -> Any:
        time.sleep(seconds)
        return call()

    return fault


_ALWAYS = frozenset({"delay", "busy", "kill"})
_POSSIBLE: Mapping[str, frozenset[str]] = {
    "pipe_file": _ALWAYS | {"drop", "conflict"},
    "link": _ALWAYS | {"drop", "lose"},
    "replace": _ALWAYS | {"drop"},
    "rm_file": _ALWAYS | {"drop"},
    "rm": _ALWAYS,
    "cat_file": _ALWAYS | {"short"},
    "cat_ranges": _ALWAYS,
    "ls": _ALWAYS | {"stale"},
    "find": _ALWAYS,
    "info": _ALWAYS,
    "exists": _ALWAYS,
    "size": _ALWAYS,
}
"""fsspec methods, and what can go wrong with them. `link` and `replace` are how local files are created and replaced."""
FAULTS = frozenset[str]().union(*_POSSIBLE.values())
"""Names of the faults of a random schedule."""


class FaultSchedule:
    """Random faults in everything that this process does with stores, local paths too, in all of its threads.

    Within `installed` calls go wrong; a child process calls `install`. The same seed gives the same faults to the same
    calls in the same order; threads come in any order.

    Parameters
    ----------
    seed
        Of the random numbers.
    rates
        Fault -> share of the calls that it hits, of those that it can:

        - `drop`: it is done, but the connection breaks before the answer comes;
        - `lose`: an object is created, but the answer is that one was there;
        - `delay`: it is done up to `delay_seconds` late;
        - `conflict`, `busy`: it is not done, and the answer is 409 or 503;
        - `short`: the last byte is missing from what was read;
        - `stale`: the last record of a slot log is not listed;
        - `kill`: this process is killed, before or after the call.
    delay_seconds
        The longest delay.

    Examples
    --------
    >>> from daskinfer.storage.objects.filesystem import list_names
    >>> with FaultSchedule(seed=0, rates={"busy": 1.0}).installed() as schedule:
    ...     list_names("records")
    Traceback (most recent call last):
        ...
    daskinfer.errors.StorageRefused: cannot list records: [Errno 5] SlowDown
    Check that the location exists and works, then try again.
    """

    def __init__(self, seed: int, rates: Mapping[str, float], delay_seconds: float = 0.005) -> None:
        if unknown := sorted(rates.keys() - FAULTS):
            raise ValueError(f"there is no fault {unknown[0]!r}; there are {', '.join(sorted(FAULTS))}")
        self.hits: Counter[str] = Counter()
        """How often each fault hit."""
        self._random = random.Random(seed)
        self._rates = dict(rates)
        self._delay_seconds = delay_seconds
        self._lock = threading.Lock()
        self._paused = threading.local()

    def install(self) -> Callable[[], None]:
        """Begin; return what ends it."""
        patch = MonkeyPatch()
        link, replace = os.link, os.replace

        def find_faulty(url: str) -> tuple[Any, str]:
            found, path = find_filesystem(url)
            return _FaultyFilesystem(found, self), path

        patch.setattr(filesystem, "find_filesystem", find_faulty)
        patch.setattr(os, "link", lambda *args, **kwargs: self.apply("link", lambda: link(*args, **kwargs)))
        patch.setattr(os, "replace", lambda *args, **kwargs: self.apply("replace", lambda: replace(*args, **kwargs)))
        return patch.undo

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Let calls go wrong within the context."""
        undo = self.install()
        try:
            yield self
        finally:
            undo()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the calls of this thread go right within the context."""
        self._paused.now = True
        try:
            yield
        finally:
            self._paused.now = False

    def apply(self, method: str, call: Call, conditional: bool = False) -> Any:
        """Make a call, or what a fault makes of it."""
        if getattr(self._paused, "now", False):
            return call()
        with self._lock:
            # Two numbers a call, whatever is possible: the schedule does not depend on what is asked.
            point, detail = self._random.random(), self._random.random()
            name = self._choose(point, _POSSIBLE[method] | ({"lose"} if conditional else frozenset()))
            if name is not None:
                self.hits[name] += 1
        return call() if name is None else self._make(name, detail)(call)

    def _choose(self, point: float, possible: frozenset[str]) -> str | None:
        for name, rate in self._rates.items():
            if point < rate:
                return name if name in possible else None
            point -= rate
        return None

    def _make(self, name: str, detail: float) -> Fault:
        if name == "delay":
            return delay(detail * self._delay_seconds)
        if name == "kill":
            return kill_before if detail < 0.5 else kill_after
        return _FAULTS[name]


_FAULTS: Mapping[str, Fault] = {
    "drop": break_connection,
    "lose": lose_acknowledgement,
    "conflict": answer_409,
    "busy": answer_503,
    "short": cut_short,
    "stale": hide_newest_slot,
}


class _FaultyFilesystem:
    """A filesystem whose calls go wrong by a schedule; what it calls itself does not."""

    def __init__(self, inner: Any, schedule: FaultSchedule) -> None:
        self._inner = inner
        self._schedule = schedule

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in _POSSIBLE:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            conditional = kwargs.get("mode") == "create"
            return self._schedule.apply(name, lambda: found(*args, **kwargs), conditional)

        return call


class FaultyFS:
    """Within this context, calls of one method of a URL's filesystem go wrong.

    fsspec keeps one instance for each store and thread, so everything that this thread does with the store is hit.

    Parameters
    ----------
    url
        Any URL of the store.
    method
        fsspec method, e.g. `pipe_file`, `cat_file`, `ls`. Local files are created by `link` and replaced by `replace`,
        in all threads.
    fault
        What happens instead of the call.
    times
        How many calls are hit.
    after
        How many calls pass before.

    Examples
    --------
    >>> from daskinfer.storage.objects.create_if_absent import create
    >>> with FaultyFS("memory://store", "pipe_file", be_full):
    ...     create("memory://store/record", b"{}")
    Traceback (most recent call last):
        ...
    daskinfer.errors.StorageError: no space left on memory://store/record
    Free some space or raise the quota, then run the same command again.
    """

    def __init__(self, url: str, method: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        self.hits = 0
        self._target: Any = os if method in ("link", "replace") else open_filesystem(url)[0]
        self._method = method
        self._fault = fault
        self._window = range(after, after + times)
        self._calls = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._overridden = self._method in vars(self._target)
        self._original = getattr(self._target, self._method)
        setattr(self._target, self._method, self._intercept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._overridden:
            setattr(self._target, self._method, self._original)
        else:
            delattr(self._target, self._method)

    def _intercept(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            hit = self._calls in self._window
            self._calls += 1
            self.hits += hit
        if hit:
            return self._fault(lambda: self._original(*args, **kwargs))
        return self._original(*args, **kwargs)
