"""Standard output and standard error as a command meets them: any encoding, closed, or read by nobody any more."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


# What click and rich write: colours, the cursor's moves to redraw a line, hiding it.
_OWN = re.compile(r"(\x1b\[(?:[0-9;]*m|[0-9]*[AKG]|\?25[hl]))")
# Control characters, and those that change the direction of what follows.
_ORDER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@contextmanager
def patient_streams() -> Iterator[Callable[[], float]]:
    """Let no console end a command: not by a character that it cannot write, and not by closing.

    Yields a function that returns the seconds since anything was written.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    out, err = _Patient(sys.stdout), _Patient(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield lambda: time.monotonic() - max(out.wrote, err.wrote)
    except SystemExit as ended:
        out.flush()
        if out.lost and not ended.code:
            click.echo(f"error: standard output could not be written: {out.lost}; what was done stays done", err=True)
            raise SystemExit(1) from None
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def print_json(model: BaseModel) -> None:
    """Print a record as one line of JSON that any console can write."""
    click.echo(json.dumps(json.loads(model.model_dump_json()), separators=(",", ":")))


def _fill_closed() -> None:
    """Open what was closed at the start, or the next file that is opened becomes standard error, for child processes too."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _disarm(text: str) -> str:
    """Return a text whose only orders to a terminal are those of our own output: colours, and lines that are redrawn."""
    if _ORDER.search(text) is None:
        return text
    return "".join(
        piece if number % 2 else _ORDER.sub(lambda match: ascii(match[0])[1:-1], piece)
        for number, piece in enumerate(_OWN.split(text))
    )


class _Patient:
    """A stream that writes what it cannot encode as escapes, and nothing more once its reader has gone."""

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = ""
        """Why what was written is lost; not where its reader has closed a pipe."""
        self.wrote = time.monotonic()
        """When something was written last."""
        self._is_closed = stream is None
        # A command may be started without a console at all.
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        self.wrote = time.monotonic()
        if self._is_closed and text:
            self.lost = "it is closed"
        with self._tolerant():
            self._stream.write(_disarm(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write as the stream does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush as the stream does."""
        with self._tolerant(), suppress(ValueError):  # closed by whoever reads it in this process
            self._stream.flush()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # nobody reads it any more, or its disk is full
            if error.errno != errno.EPIPE:
                self.lost = error.strerror or str(error)
            # Python flushes once more at its end, and would complain.
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
