"""The background cluster of a machine, as commands ask for it."""

from __future__ import annotations

from typing import Literal

from daskinfer.spec.recipe.schema import LocalCluster
from daskinfer.spec.section import Section


class BackgroundStatus(Section):
    """What the background cluster does.

    Examples
    --------
    >>> BackgroundStatus(state="ready", pid=12, local=LocalCluster(), folder="/data", idle_minutes=30, runs=0, seconds=2).user
    0
    """

    state: Literal["starting", "ready", "in use", "stopping"]
    """`starting`: workers are made, for the first run or the next one. `stopping`: it ends."""
    pid: int
    """Process that keeps it."""
    local: LocalCluster
    """Its workers."""
    folder: str
    """Working directory that it was started in; runs from another one do not use it."""
    idle_minutes: float
    """How long it waits for a run before it ends."""
    runs: int
    """Runs that have used it."""
    seconds: float
    """Since it is in its state."""
    user: int = 0
    """Process that uses it; 0 where none does."""


class BackgroundOffer(Section):
    """A fresh cluster that a run may use: nobody used it before, and nobody will after."""

    address: str
    """Of its scheduler."""
    certificate: str = ""
    """PEM; empty without TLS."""
    key: str = ""
    """PEM of its private key."""


class BackgroundRequest(Section):
    """What a run or a command asks of the process that keeps the cluster."""

    ask: Literal["status", "stop", "stop now", "take"]
    circumstances: dict[str, str] = {}
    """All that the workers of the run would depend on, by name."""


class BackgroundReply(Section):
    """What the process that keeps the cluster answers."""

    status: BackgroundStatus | None = None
    offer: BackgroundOffer | None = None
    refused: str = ""
    """Why it does not do what it was asked."""
