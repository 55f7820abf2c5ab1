"""What is told of workers that live and do not work, and what is done about them."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.runtime.state_machine.faults.reachability import Link


@dataclass(frozen=True, slots=True)
class WorkerFrozen:
    """A worker is connected, and has not been heard of for longer than the recipe allows; told again as time goes by."""

    worker: str
    silent: float
    """Seconds since it was last heard of."""


@dataclass(frozen=True, slots=True)
class WorkerPaused:
    """A worker's memory is so full that Dask gives it no new tasks."""

    worker: str
    used: int
    """Bytes that its process holds."""
    limit: int
    """Bytes that it may."""


@dataclass(frozen=True, slots=True)
class WorkerResumed:
    """A paused worker takes tasks again."""

    worker: str


@dataclass(frozen=True, slots=True)
class NetworkCut:
    """Workers that need what others hold cannot reach them; all of these are connected to the scheduler."""

    links: tuple[Link, ...]
    seconds: float
    """Since one of them began to wait."""


@dataclass(frozen=True, slots=True)
class LinkMended:
    """A link that was cut is there again."""

    link: Link
    """As it was told when it was cut."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Take a worker off the cluster, so that its tasks go elsewhere, and have its nanny start another."""

    worker: str
