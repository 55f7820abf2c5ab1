"""Rows that break whoever computes them, and how that was found out."""

from __future__ import annotations

from daskinfer.spec.rows import Fault
from daskinfer.spec.section import Section


class PoisonRow(Section):
    """A row that failed whenever it was computed alone."""

    row: int
    """Position in the partition, from 0."""
    kind: Fault
    """What it did at last."""
    error: str
    """The same in one sentence, without anything that another attempt would say otherwise."""


class FailedAttempt(Section):
    """One try at a microbatch, or at a part of it, that failed."""

    attempt: int
    """Number of the try, from 0."""
    rows: int
    """How many rows it computed; 0 for the whole microbatch before anything was suspected."""
    stage: int | None
    """Where it failed, as far as that is known."""
    worker: str
    """On which worker, as far as that is known."""
    what: Fault
    """How it failed."""
    detail: str
    """The error, word for word."""
    before: float
    """Seconds before the poison record."""


class PoisonRecord(Section):
    """The poisonous rows of one microbatch: written once, and true for every attempt from then on."""

    generation: int
    """Snapshot among the job's that they break."""
    partition: int
    """Number of the partition."""
    microbatch: int
    """Number of the microbatch."""
    of: int
    """How many rows it has in all."""
    rows: tuple[PoisonRow, ...]
    """Ascending."""
    attempts: tuple[FailedAttempt, ...]
    """In order of time."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the rows in the partition."""
        return tuple(row.row for row in self.rows)
