"""Which workers of a cluster a job can use: those that answer, and have the same daskinfer as the driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any

from distributed import Client

from daskinfer.errors import JobFailed
from daskinfer.knobs import ANSWER_SECONDS
from daskinfer.source import digest_source

Description = tuple[str | None, str | None]
"""Version of daskinfer and digest of its source; None for the first, and why in the second, where there is none."""


class Admission:
    """The workers that were looked at, and what was found.

    Parameters
    ----------
    client
        Connected to their scheduler.
    set_up
        Called with the addresses of workers that can be used, before they are.
    say
        Told of every worker that is left alone, in a line, once.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(sync=lambda *_: {"tcp://a:1": ("1.0", digest_source()), "tcp://b:1": (None, "no such module")})
    >>> admission = Admission(client, say=print)
    >>> admission.admit(["tcp://a:1", "tcp://b:1"])
    worker tcp://b:1 is left alone: it has no daskinfer (no such module)
    {'tcp://a:1'}
    """

    def __init__(
        self,
        client: Client,
        set_up: Callable[[list[str]], None] = lambda workers: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._client = client
        self._set_up = set_up
        self._say = say
        self.wake: Callable[[str], None] = lambda worker: None
        """Called with a worker that had not answered and has now, in the client's own thread."""
        self._refused: dict[str, str] = {}
        self._usable: set[str] = set()

    def admit(self, workers: Iterable[str]) -> set[str]:
        """Return those of some connected workers that can be used, after at most `ANSWER_SECONDS`."""
        asked = list(workers)
        unknown = [worker for worker in asked if worker not in self._usable and worker not in self._refused]
        if unknown:
            found = self._client.sync(_ask, self._client, unknown, self._hear_late)
            reasons = {worker: why for worker in unknown if (why := _find_fault(found.get(worker)))}
            usable = [worker for worker in unknown if worker not in reasons]
            if usable:
                self._set_up(usable)
                self._usable |= set(usable)
            for worker, why in sorted(reasons.items()):
                self._refused[worker] = why
                self._say(f"worker {worker} is left alone: it {why}")
        return {worker for worker in asked if worker in self._usable}

    def is_usable(self, worker: str) -> bool:
        """Whether a worker was found usable."""
        return worker in self._usable

    def forget(self, worker: str) -> None:
        """Look at a worker again should one come back under this address."""
        self._usable.discard(worker)
        self._refused.pop(worker, None)

    def require(self, workers: Iterable[str]) -> set[str]:
        """Return those that can be used.

        Raises
        ------
        JobFailed
            There are workers, and not one of them can be.
        """
        asked = set(workers)
        usable = self.admit(asked)
        if asked and not usable:
            whys = "; ".join(f"{worker} {self._refused[worker]}" for worker in sorted(asked)[:3])
            more = f"; and {len(asked) - 3} more" if len(asked) > 3 else ""
            raise JobFailed(
                f"none of the {len(asked)} worker(s) of the cluster can be used: {whys}{more}",
                hint="Install this version of daskinfer where the workers run, and start them again.",
            )
        return usable

    def _hear_late(self, worker: str) -> None:
        self._refused.pop(worker, None)
        self.wake(worker)


def describe_scheduler(client: Client) -> None:
    """Refuse a scheduler that lacks what a job runs there.

    Raises
    ------
    JobFailed
        It has another daskinfer, or none.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> describe_scheduler(Mock(run_on_scheduler=lambda probe: probe()))
    >>> describe_scheduler(Mock(run_on_scheduler=lambda probe: ("0.1", "sha256:ab")))
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobFailed: the scheduler ... cannot be used: it has another version of daskinfer (0.1, ...
    """
    found: Description = client.run_on_scheduler(_make_probe())
    if why := _find_fault(found):
        raise JobFailed(
            f"the scheduler {client.scheduler.address} cannot be used: it {why}",
            hint="Install this version of daskinfer where the scheduler runs, and start it again.",
        )


def _find_fault(found: Description | BaseException | None) -> str:
    """Return why a worker cannot be used, from what it says of itself; empty where it can."""
    if found is None:
        return f"does not answer within {ANSWER_SECONDS.get():.0f} s"
    if isinstance(found, BaseException):
        return f"cannot say what it is: {type(found).__name__}: {found}"
    version, source = found
    if version is None:
        return f"has no daskinfer ({source})"
    if source != digest_source():
        return f"has another version of daskinfer ({version}, or other code of the same number)"
    return ""


async def _ask(
    client: Client, workers: list[str], late: Callable[[str], None]
) -> Mapping[str, Description | BaseException]:
    probe = _make_probe()
    asked: dict[asyncio.Task[Any], str] = {
        asyncio.ensure_future(_ask_one(client, probe, worker)): worker for worker in workers
    }
    done, waiting = await asyncio.wait(asked, timeout=ANSWER_SECONDS.get())
    for task in waiting:
        task.add_done_callback(partial(_tell_late, worker=asked[task], late=late))
    return {asked[task]: task.exception() or task.result() for task in done if not task.cancelled()}


async def _ask_one(client: Client, probe: Callable[[], Description], worker: str) -> Any:
    running: Coroutine[Any, Any, dict[str, Any]] = client.run(probe, workers=[worker], on_error="return")
    return (await running)[worker]


def _tell_late(task: asyncio.Task[Any], worker: str, late: Callable[[str], None]) -> None:
    if not task.cancelled() and task.exception() is None and not isinstance(task.result(), BaseException):
        late(worker)


def _make_probe() -> Callable[[], Description]:
    # Inside a function, so that it is sent as code: a worker without daskinfer could not look it up by its name.
    def describe() -> Description:
        from importlib import import_module

        try:
            daskinfer = import_module("daskinfer")
        except Exception as error:  # noqa: BLE001 - whatever it is, this process has no daskinfer
            return None, f"{type(error).__name__}: {error}"
        try:
            version = str(daskinfer.__version__)
        except Exception:  # noqa: BLE001 - not installed as a package, or too old to say
            version = "unknown"
        try:
            from daskinfer.source import digest_source
        except Exception:  # noqa: BLE001 - too old to say
            return version, None
        return version, digest_source()

    return describe
