"""No command is mute: where it has written nothing for some time, it says that it still works."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from daskinfer.units import format_duration

TERMINAL_SECONDS = 8.0
"""Silence after which a command says so to whoever watches it."""
PIPE_SECONDS = 30.0
"""And to a file or a pipe."""


@contextmanager
def breaking_silence(silence: Callable[[], float], seconds: float | None = None) -> Iterator[None]:
    """Write a line on stderr whenever nothing has been written for some seconds.

    Parameters
    ----------
    silence
        Returns the seconds since the last word, whoever wrote it.
    seconds
        How much silence there may be; by default less on a terminal than elsewhere.
    """
    limit = seconds or (TERMINAL_SECONDS if sys.stderr.isatty() else PIPE_SECONDS)
    ended, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not ended.wait(max(limit - silence(), limit / 20)):
            if silence() >= limit:
                click.echo(f"still working, {format_duration(time.monotonic() - started)} so far", err=True)

    ticking = threading.Thread(target=tick, name="daskinfer-silence", daemon=True)
    ticking.start()
    try:
        yield
    finally:
        ended.set()
