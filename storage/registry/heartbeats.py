"""Heartbeats: values that change while whoever writes them lives.

A heartbeat carries no time. Whoever wants to know whether its writer is dead watches it, and counts the seconds without
a change on a clock of their own: no two clocks are ever compared, and neither is an age that a store tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from daskinfer.errors import DaskinferError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.filesystem import modified_at, read_record, replace_bytes
from daskinfer.storage.objects.silence import SilenceTimer

TTL_SECONDS = 900
"""How long a heartbeat may stay unchanged before a collector may take its writer for dead."""

_LOOKS = 10
_LONGEST_PAUSE = 5.0


def beat(url: str) -> None:
    """Change a heartbeat; its writer does so at least every quarter of `TTL_SECONDS`.

    Examples
    --------
    >>> beat("demo.hb")
    >>> before = read_beat("demo.hb")
    >>> beat("demo.hb")
    >>> read_beat("demo.hb") == before
    False
    """
    replace_bytes(url, make_nonce().encode())


def try_beat(url: str) -> bool:
    """Change a heartbeat if the store lets us: a store that is away for a moment must not end hours of work.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("file").write_text("no folder")
    >>> try_beat("demo.hb"), try_beat("file/demo.hb")
    (True, False)
    """
    try:
        beat(url)
    except (DaskinferError, OSError):
        return False
    return True


def read_beat(url: str) -> str | None:
    """Return a heartbeat's value, to be compared with an earlier one; None before the first.

    Examples
    --------
    >>> beat("demo.hb")
    >>> len(read_beat("demo.hb")), read_beat("other.hb")
    (16, None)
    """
    try:
        return read_record(url).decode()
    except FileNotFoundError:
        return None


def tell_age(url: str) -> float | None:
    """Return the seconds since a heartbeat changed as the store's clock and ours tell; for people only.

    None where the store does not tell, or nothing was written.

    Examples
    --------
    >>> beat("demo.hb")
    >>> tell_age("demo.hb") < 60, tell_age("other.hb")
    (True, None)
    """
    changed = modified_at(url)
    return None if changed is None else max(0.0, (datetime.now(UTC) - changed).total_seconds())


@dataclass(frozen=True, slots=True)
class Pulse:
    """A heartbeat to watch."""

    url: str
    """Where it is."""
    ttl_seconds: float
    """For how long it must stay unchanged."""


class Watcher:
    """Tells the dead from the living by watching.

    Parameters
    ----------
    clock
        Seconds on any clock of this process that never goes back.
    sleep
        Waits so many seconds of that clock.
    tell
        Called now and then with how long it has watched, and how long it will watch at most; in seconds.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.registries import VirtualTime
    >>> beat("demo.hb")
    >>> time = VirtualTime()
    >>> watcher = time.watcher()
    >>> watcher.watch([Pulse("demo.hb", ttl_seconds=60)])
    >>> watcher.is_dead("demo.hb", read_beat("demo.hb")), time.now >= 60
    (True, True)
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[float, float], None] = lambda seconds, longest: None,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._tell = tell
        self._dead: dict[str, str | None] = {}

    def watch(self, pulses: Iterable[Pulse]) -> None:
        """Watch heartbeats, all at once, until each has changed or was silent for its time to live."""
        waiting = {pulse.url: pulse for pulse in pulses}
        timer = SilenceTimer()

        def look(url: str) -> tuple[str | None, float | None]:
            asked = self._clock()
            value = read_beat(url)
            return value, timer.observe(url, value, asked, self._clock())

        for url in waiting:
            look(url)
        since = self._clock()
        while waiting:
            for url, pulse in list(waiting.items()):
                value, silent = look(url)
                if silent is None:
                    del waiting[url]
                elif silent >= pulse.ttl_seconds:
                    self._dead[url] = value
                    del waiting[url]
            if waiting:
                times = [pulse.ttl_seconds for pulse in waiting.values()]
                watched = self._clock() - since
                self._tell(watched, max(times))
                self._sleep(max(0.0, min(min(times) - watched, min(times) / _LOOKS, _LONGEST_PAUSE)))

    def assume(self, url: str) -> None:
        """Take the writer of a heartbeat for dead because somebody who knows said so."""
        self._dead[url] = read_beat(url)

    def is_dead(self, url: str, value: str | None) -> bool:
        """Whether exactly this value was found to be a dead one's: a single beat more, and its writer lives."""
        return url in self._dead and self._dead[url] == value
