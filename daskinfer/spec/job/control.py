"""What people ask of a running job, and what its workers do meanwhile."""

from __future__ import annotations

from typing import Literal

from daskinfer.spec.section import Section

Doing = Literal["loads", "computes", "stands by", "waits", "leaves"]


class WorkerState(Section):
    """A worker, as the driver of a job sees it."""

    worker: str
    """Its address."""
    name: str = ""
    """Its name on the cluster."""
    does: Doing
    """`waits`: nothing needs it. `leaves`: it is being drained."""
    stages: tuple[int, ...] = ()
    """Stages that it computes."""
    warm: tuple[int, ...] = ()
    """Stages that it keeps in memory for when they lose their worker."""

    @property
    def host_port(self) -> str:
        """Its address without the protocol."""
        return self.worker.rpartition("://")[2]


class ControlRecord(Section):
    """One entry of a job's control log."""

    op: Literal["cancel", "drain", "done"]
    """`done`: the driver's answer."""
    worker: str = ""
    """`drain`: address of the worker."""
    request: int | None = None
    """`done`: number of the request."""
    detail: str = ""
    """`done`: what became of it."""
    epoch: int
    """`done`: the driver that answers. Otherwise the newest driver that there was: a later one is not meant."""
    by: str
    """Who wrote it, user@host."""
    at: str
    """When, ISO 8601, UTC."""


class Outcome(Section):
    """What became of a request."""

    job: str
    """Job id."""
    op: Literal["cancel", "drain"]
    """What was asked for."""
    request: int
    """Number of the request in the job's control log."""
    worker: str = ""
    """`drain`: address of the worker."""
    answered: bool = False
    """Whether the driver has done it."""
    detail: str = ""
    """The driver's answer."""
