"""Standard output and standard error as a command meets them: any encoding, closed, or read by nobody any more."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


@contextmanager
def patient_streams() -> Iterator[None]:
    """Let no console end a command: not by a character that it cannot write, and not by closing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Patient(sys.stdout)), cast(TextIO, _Patient(sys.stderr))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def print_json(model: BaseModel) -> None:
    """Print a record as one line of JSON that any console can write."""
    click.echo(json.dumps(json.loads(model.model_dump_json()), separators=(",", ":")))


class _Patient:
    """A stream that writes what it cannot encode as escapes, and nothing more once its reader has gone."""

    def __init__(self, stream: TextIO | None) -> None:
        # A command may be started without a console at all.
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        with self._tolerant():
            self._stream.write(text)
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
        except BrokenPipeError:
            # Python flushes once more at its end, and would complain.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
