"""Turns of contestants, and the ratios of what they took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One run of one contestant, in seconds."""

    whole: float
    """From the command to its end."""
    running: float
    """From the first model that is loaded to the last byte that is written."""

    def __str__(self) -> str:
        return f"{self.running:.1f} s running of {self.whole:.1f} s"


@dataclass(frozen=True)
class Spread:
    """The median of some figures and their range."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def order_round(names: Sequence[str], number: int) -> list[str]:
    """Return who runs when in a round: there and back, so that a machine that slows down favours nobody."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def divide(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, Spread]:
    """Return our time as a part of theirs, round by round."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        part: Spread.of([getattr(our, part) / getattr(their, part) for our, their in pairs])
        for part in ("running", "whole")
    }


def summarise(turns: Mapping[str, Sequence[Turn]], base: str, limit: str = "products") -> dict[str, dict[str, Any]]:
    """Return of every contestant its turns, their spread, and the times of `base` and of `limit` as a part of its own."""

    def share(own: Sequence[Turn]) -> dict[str, float] | None:
        return asdict(divide(turns[limit], own)["running"]) if limit in turns else None

    return {
        name: {
            "share_of_limit": share(own),
            "turns": [asdict(turn) for turn in own],
            **{part: asdict(Spread.of([getattr(turn, part) for turn in own])) for part in ("running", "whole")},
            "ratio": {part: asdict(spread) for part, spread in divide(turns[base], own).items()},
        }
        for name, own in turns.items()
    }
