"""Tuning constants that hardly anybody needs to change: each has a default, and a variable that overrides it.

The variable also reaches the processes that this one starts. docs/reference/knobs.md lists them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from daskinfer.errors import UsageError

Number = TypeVar("Number", int, float)
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Knob(Generic[Number]):
    """A number that the program goes by.

    Parameters
    ----------
    name
        In capitals, as in its variable.
    default
        Its value where the variable is not set.
    unit
        What it counts.
    purpose
        What it is for, as the documentation says it.
    """

    name: str
    default: Number
    unit: str
    purpose: str

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return f"DASKINFER_{self.name}"

    def get(self) -> Number:
        """Return the value of now.

        Raises
        ------
        UsageError
            Where the variable is not a number, or below 0.

        Examples
        --------
        >>> from daskinfer.knobs import STORE_ATTEMPTS
        >>> STORE_ATTEMPTS.get()
        8
        >>> with STORE_ATTEMPTS.override(2):
        ...     STORE_ATTEMPTS.get()
        2
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        try:
            value = type(self.default)(text)
        except ValueError:
            value = None
        if value is None or not value >= 0:
            kind = "whole number" if isinstance(self.default, int) else "number"
            raise UsageError(
                f"{self.variable} is {text!r}, which is not a {kind} of {self.unit}",
                hint=f"Set it to a {kind}, or unset it: {self.default} is the default.",
            )
        return value

    @contextmanager
    def override(self, value: Number) -> Iterator[None]:
        """Use another value within the context, in this process and in those that it starts."""
        before = os.environ.get(self.variable)
        os.environ[self.variable] = str(value)
        try:
            yield
        finally:
            if before is None:
                del os.environ[self.variable]
            else:
                os.environ[self.variable] = before


ANSWER_SECONDS = Knob(
    "ANSWER_SECONDS",
    8.0,
    "seconds",
    "How long a scheduler or a worker may take to answer before it counts as not there",
)
PROGRESS_SECONDS = Knob("PROGRESS_SECONDS", 0.25, "seconds", "How often a run tells its progress")
VERDICT_SECONDS = Knob(
    "VERDICT_SECONDS", 15.0, "seconds", "How long whoever locks a version waits for a collection to decide about it"
)
STORE_ATTEMPTS = Knob("STORE_ATTEMPTS", 8, "attempts", "How often a request is repeated while a store is busy")
LONGEST_RECORD = Knob(
    "LONGEST_RECORD", 128 * MEBIBYTE, "bytes", "The longest row of an input; longer ones are quarantined"
)
LOCAL_CHUNK = Knob(
    "LOCAL_CHUNK",
    2 * MEBIBYTE,
    "bytes",
    "How much of a tensor one read takes from a local disk; small enough for the CPU's cache",
)
REMOTE_CHUNK = Knob(
    "REMOTE_CHUNK",
    8 * MEBIBYTE,
    "bytes",
    "How much of a tensor one request takes from a remote store; large against its latency",
)
ONE_PUT = Knob("ONE_PUT", 32 * MEBIBYTE, "bytes", "Up to this size a blob is written to a remote store by one request")
UPLOAD_PART = Knob(
    "UPLOAD_PART",
    16 * MEBIBYTE,
    "bytes",
    "The parts in which larger blobs are written; S3 takes no smaller ones than 5 MiB",
)

KNOBS: tuple[Knob[int] | Knob[float], ...] = (
    ANSWER_SECONDS,
    PROGRESS_SECONDS,
    VERDICT_SECONDS,
    STORE_ATTEMPTS,
    LONGEST_RECORD,
    LOCAL_CHUNK,
    REMOTE_CHUNK,
    ONE_PUT,
    UPLOAD_PART,
)
