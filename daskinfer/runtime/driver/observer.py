"""Whoever wants to know what happens in a run, without the driver knowing them by name."""

from __future__ import annotations

from typing import Protocol

from daskinfer.runtime.protocol.actions import Action
from daskinfer.runtime.protocol.events import Event
from daskinfer.spec.job.control import WorkerState


class RunView(Protocol):
    """What an observer may see of the driver."""

    running_since: float | None
    """`time.monotonic()` when partitions could start; None before."""

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What every worker does."""


class RunObserver:
    """Hears what happens in a run, in the driver's thread; every method does nothing unless it is overridden.

    What an observer raises ends the run.
    """

    def on_event(self, event: Event) -> None:
        """Hear of an event, before anything is decided."""

    def on_action(self, action: Action) -> None:
        """Hear of what is about to be done."""

    def on_step(self, run: RunView) -> None:
        """Do what is due; called several times a second."""
