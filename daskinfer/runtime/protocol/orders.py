"""What people ask of a running job, and what taking a worker out of it needs: more events and actions of the driver core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody wants the run to stop."""

    number: int
    """Of the request in the control log."""
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Somebody wants a worker to be let go, and nothing to be lost by it."""

    number: int
    worker: str
    by: str


@dataclass(frozen=True, slots=True)
class ShardReleased:
    """A worker has finished what it had in work, and its shard is freed."""

    worker: str
    stage: int | None
    """None where it was everything that the job had there."""


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """Give a worker nothing new of a stage, let it finish what it has in work, then free its shard."""

    worker: str
    stage: int | None
    """None for everything that the job has there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Write down what became of a request in the control log."""

    number: int
    detail: str


@dataclass(frozen=True, slots=True)
class StatusLine:
    """Something for whoever watches, again and again, and for no record."""

    detail: str
