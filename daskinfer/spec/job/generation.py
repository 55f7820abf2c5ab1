"""Generations: the snapshots that one job computes on, in the order in which it took them up."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from daskinfer.spec.section import Section


class SnapshotPin(Section):
    """What an attempt at a partition computes on, from its first task to its commit."""

    generation: int = 0
    """Number of the snapshot among those of the job, from 0."""
    snapshot: str
    """Snapshot digest."""
    sequence: int | None = None
    """Number of the alias's move that led to it; None where no alias did."""
    version: int | None = None
    """Version number of the snapshot, where one is known."""
    scope: int = 0
    """Generation whose switch gave it its partitions: commits of different scopes never compete."""
    is_trial: bool = False
    """Whether it is compared with another generation before anything of it counts; its parts are kept."""


class Step(Section):
    """A record of a job's generation log."""

    op: Literal["prepare", "adopt", "switch", "drop", "seal"]
    """A snapshot is locked and fits; partitions start on it; it takes over partitions; it is given up; no switch can
    follow."""
    generation: int = 0
    """Which one."""
    pin: SnapshotPin | None = None
    """`prepare`: what it is."""
    owned: tuple[tuple[int, int], ...] = ()
    """`switch`: ranges of partitions, [first, last)."""
    epoch: int
    """Life of the driver that decided it."""
    reason: str = ""
    """Why, for people."""


class Generations(Section):
    """A job's generations, as their log tells."""

    pins: tuple[SnapshotPin, ...]
    """By number."""
    owned: dict[int, tuple[tuple[int, int], ...]] = {}
    """Scope -> the ranges of partitions, [first, last), that its switch took over."""
    adopted: tuple[int, ...] = ()
    """Generations that partitions have started on without a switch."""
    dropped: tuple[int, ...] = ()
    """Generations that nothing will start on any more."""
    sealed: bool = False
    """Whether no switch can follow."""

    @property
    def current(self) -> SnapshotPin:
        """What a partition that starts now is computed on."""
        proven = {0, *self.adopted, *self.owned} - set(self.dropped)
        return next(pin for pin in reversed(self.pins) if pin.generation in proven)

    @property
    def scopes(self) -> tuple[int, ...]:
        """All scopes, the newest first."""
        return (*sorted(self.owned, reverse=True), 0)

    def owner(self, partition: int) -> int:
        """Return the scope whose commit of a partition counts."""
        return next((scope for scope in self.scopes if scope and _holds(self.owned[scope], partition)), 0)


def as_ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending numbers as ranges [first, last).

    Examples
    --------
    >>> as_ranges([0, 1, 2, 7, 9, 10])
    ((0, 3), (7, 8), (9, 11))
    """
    ordered = list(numbers)
    if not ordered:
        return ()
    gaps = [after for before, after in pairwise(ordered) if after != before + 1]
    firsts = [ordered[0], *gaps]
    lasts = [*(before + 1 for before, after in pairwise(ordered) if after != before + 1), ordered[-1] + 1]
    return tuple(zip(firsts, lasts, strict=True))


def fold(first: SnapshotPin, steps: Iterable[Step]) -> Generations:
    """Return what the steps of a generation log amount to; `first` is what the job was born with.

    Examples
    --------
    >>> pins = [SnapshotPin(generation=number, snapshot=f"sha256:{number}") for number in (0, 1)]
    >>> prepare = Step(op="prepare", generation=1, pin=pins[1], epoch=1)
    >>> switch = Step(op="switch", generation=1, owned=((4, 9),), epoch=1)
    >>> found = fold(pins[0], [prepare, switch])
    >>> found.current.generation, found.owner(3), found.owner(4)
    (1, 0, 1)
    """
    pins, adopted, dropped, sealed = [first], [], [], False
    owned: dict[int, tuple[tuple[int, int], ...]] = {}
    for step in steps:
        match step.op:
            case "prepare":
                assert step.pin is not None
                pins.append(step.pin)
            case "adopt":
                adopted.append(step.generation)
            case "switch":
                owned[step.generation] = step.owned
            case "drop":
                dropped.append(step.generation)
            case "seal":
                sealed = True
    return Generations(pins=tuple(pins), owned=owned, adopted=tuple(adopted), dropped=tuple(dropped), sealed=sealed)


def _holds(ranges: Iterable[tuple[int, int]], partition: int) -> bool:
    return any(begin <= partition < end for begin, end in ranges)
