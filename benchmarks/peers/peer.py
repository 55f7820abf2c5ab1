"""What a peer is to the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.work import Work

TEXTS = ("embed", "score")
ALL_TASKS = (*TEXTS, "classify")


def _nothing(work: Work) -> None:
    """Most peers have nothing to prepare."""


@dataclass(frozen=True)
class Peer:
    """A way to do a case's work without daskinfer."""

    name: str
    what: str
    """How it is run, in a few words."""
    run: Callable[[Work], Any]
    """Return an array with one entry for each row, in order; None where there is nothing to compare."""
    prepare: Callable[[Work], None] = _nothing
    """What is done once and outside the clock, such as the export of a model."""
    tasks: tuple[str, ...] = ALL_TASKS
    packages: tuple[str, ...] = ()
    """Distributions of which it is made, beside torch and transformers."""
    processes: int = 1
    """The cores are shared out among so many processes."""
    programs: tuple[str, ...] = ()
    """What must be on the PATH."""
