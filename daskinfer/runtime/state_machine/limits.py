"""When a job gives up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daskinfer.spec.recipe.schema import Recipe

# Importing a large library holds Python's lock, and with it the heartbeat.
LOADING_SLACK = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give up."""

    rejects: int
    """Quarantined rows that the job may have."""
    attempts: int = 3
    """Tries of one task that raises."""
    losses: int = 5
    """Workers lost since the last commit, with no microbatch on them that could have done it."""
    missing: Literal["wait", "stop"] = "wait"
    """What to do where a stage has no worker and no other can take it."""
    patience: float = 60.0
    """Seconds until it stops for that."""
    frozen: float = 15.0
    """Seconds that a worker may be silent."""
    paused: float = 60.0
    """Seconds that a worker may be paused."""
    storage: float = 300.0
    """Seconds that a store may refuse."""
    seconds: float | Literal["auto"] | None = "auto"
    """Seconds that a microbatch may take in a stage."""
    hopeless: bool = True
    """Whether a model that breaks on every row that it is given first ends the job."""

    def silence(self, is_loading: bool) -> float:
        """Return for how many seconds a worker may be silent."""
        return self.frozen * (LOADING_SLACK if is_loading else 1)

    @classmethod
    def of(cls, recipe: Recipe, rows: int) -> Limits:
        """Return what a recipe allows a job with so many rows."""
        return cls(
            rejects=recipe.errors.limit(rows),
            seconds=recipe.errors.microbatch_seconds,
            **recipe.recovery.model_dump(),
        )
