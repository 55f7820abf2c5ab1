"""Real code, one storage request at a time: actors are threads that stop before each request to memory:// storage."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from daskinfer import ids
from daskinfer.storage.objects import create_if_absent
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.events import write_event

_REQUESTS = ("cat_file", "ls", "find", "pipe_file", "info", "modified", "_rm", "rm")
_running = threading.local()


class Died(BaseException):
    """The end of a process: nothing that it still does gets through."""


class Actor:
    """Somebody who does `action`, as far as he is let.

    Parameters
    ----------
    name
        For messages.
    action
        What he does.
    """

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name = name
        self.done = False
        self.dead = False
        self.paused = False
        """Whether he stands still for longer than anybody waits for."""
        self.was_paused = False
        self.result: object = None
        self.error: Exception | None = None
        self._action = action
        self._steps: float = 0
        self._go = threading.Lock()
        self._stopped = threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._await_stop()

    @property
    def is_free(self) -> bool:
        """Whether he can take a step."""
        return not (self.done or self.paused)

    def step(self, count: float = 1) -> None:
        """Let him make so many requests, or come to his end."""
        if not self.done:
            self._steps = count
            self._go.release()
            self._await_stop()

    def finish(self) -> None:
        """Let him come to his end."""
        self.step(inf)

    def kill(self) -> None:
        """End him before his next request."""
        self.dead = True
        self.step()
        assert self.done

    def pause(self) -> None:
        """Stand still until he is woken up."""
        self.paused = self.was_paused = True

    def stop(self) -> None:
        """Wait before a request until it is his turn."""
        self._steps -= 1
        if self._steps < 0 and not self.dead:
            self._stopped.release()
            self._go.acquire()
            self._steps -= 1
        if self.dead:
            raise Died

    def _await_stop(self) -> None:
        # Who does not come back waits for what another one holds while he stands still: they may share storage only.
        assert self._stopped.acquire(timeout=180), f"{self.name} is stuck"

    def _run(self) -> None:
        _running.actor = self
        try:
            self.stop()
            self.result = self._action()
        except Died:
            pass
        except Exception as error:  # noqa: BLE001 - looked at by whoever let him run
            self.error = error
        finally:
            self.done = True
            self._stopped.release()


class ungated:
    """Within this context, the running actor's requests pass without stopping."""

    def __enter__(self) -> None:
        _running.inside = getattr(_running, "inside", 0) + 1

    def __exit__(self, *words: object) -> None:
        _running.inside -= 1


def install(patch: pytest.MonkeyPatch) -> None:
    """Make actors stop at every request, and what is random the same every time."""
    patch.setattr(MemoryFileSystem, "store", {})
    patch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    for name in _REQUESTS:
        patch.setattr(MemoryFileSystem, name, _stopping(getattr(MemoryFileSystem, name)))
    patch.setattr(create_if_absent, "create_in_memory", _stopping(create_if_absent.create_in_memory))
    # Events are written under a lock of the process, which actors must not share; their chains have tests of their own.
    patch.setattr(authorised_writes, "write_event", _at_once(write_event))
    count = iter(range(10**9))

    def token_hex(nbytes: int) -> str:
        return hashlib.sha256(str(next(count)).encode()).hexdigest()[: 2 * nbytes]

    patch.setattr(ids, "secrets", SimpleNamespace(token_hex=token_hex))


def _at_once(call: Callable[..., Any]) -> Callable[..., Any]:
    def call_ungated(*words: Any, **named: Any) -> Any:
        with ungated():
            return call(*words, **named)

    return call_ungated


def _stopping(call: Callable[..., Any]) -> Callable[..., Any]:
    at_once = _at_once(call)

    def stop_then_call(*words: Any, **named: Any) -> Any:
        actor = getattr(_running, "actor", None)
        if actor is not None and not getattr(_running, "inside", 0):
            actor.stop()
        return at_once(*words, **named)

    return stop_then_call
