"""Ctrl-C and SIGTERM, at whatever moment they come."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Slurm, Kubernetes and Airflow stop a job by SIGTERM: it ends as tidily as on Ctrl-C.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130

Handler = Callable[[int, FrameType | None], object]


def is_program() -> bool:
    """Whether this process is the command, and not another program that has imported it."""
    parts = sys.argv[0].replace(os.sep, "/").split("/")
    return threading.current_thread() is threading.main_thread() and (
        parts[-1].removesuffix(".exe") == "daskinfer" or parts[-2:] == ["daskinfer", "__main__.py"]
    )


@contextmanager
def ending_at_once(say: Callable[[], object]) -> Iterator[None]:
    """Say something and end this process where a signal comes: nothing has been begun that would have to be ended.

    While libraries are imported, an interrupt that is raised in their midst can come out as anything. No garbage is
    looked for meanwhile: nearly all that they make stays, and the search takes a tenth of the time.
    """

    def end(number: int, frame: FrameType | None) -> None:
        end_process(say)

    collects = gc.isenabled()
    gc.disable()
    try:
        with _handled_by(end):
            yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt for each of the signals."""
    with _handled_by(signal.default_int_handler):
        yield


def end_process(say: Callable[[], object] = lambda: None) -> None:
    """End this process without anything that Python does at the end, and the tracebacks of that."""
    with suppress(Exception):
        say()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(INTERRUPTED)


def hear_no_more() -> None:
    """Let a signal that comes after the last word end the process without another one."""
    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, frame: end_process())


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Whoever started it in the background of a shell, or with nohup, wants it not to hear them.
    heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(each, handler) for each in heard]
    try:
        yield
    finally:
        for each, earlier in zip(heard, before, strict=True):
            signal.signal(each, earlier)
