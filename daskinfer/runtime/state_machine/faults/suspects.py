"""What is known of microbatches under suspicion, as plain records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from daskinfer.runtime.state_machine.faults.poison_bisection import Bisection
from daskinfer.spec.rows import Fault


@dataclass(slots=True)
class Failure:
    """A try at a microbatch, or at a part of it, that failed."""

    attempt: int
    stage: int | None
    worker: str
    what: Fault
    detail: str
    at: float
    rows: int = 0


@dataclass(slots=True)
class Suspect:
    """A microbatch out of the flow."""

    fault: Fault | None
    """What it was seen to do as a whole."""
    alone: bool
    """Whether nothing else may be in flight while it is probed."""
    search: Bisection | None = None
    attempt: int | None = None
    """Of the probe that is under way."""
    mishaps: int = 0
    """Probes that failed for reasons of their own."""


@dataclass(slots=True)
class MicrobatchHistory:
    """What a microbatch has done so far."""

    marks: Counter[Fault] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
