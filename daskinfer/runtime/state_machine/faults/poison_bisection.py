"""Which rows of a microbatch break whoever computes them, found by computing parts of it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from daskinfer.redaction import conceal
from daskinfer.spec.job.poison import PoisonRow
from daskinfer.spec.rows import Fault

ALONE = 2
"""Failures of a row that is tried alone before it is quarantined: one death of a worker may be coincidence."""
ROUNDS = 3
"""Times that the whole may fail while each of its parts passes, before the rows are no longer suspected."""


FANOUT: dict[Fault, int] = {"raised": 2, "hung": 16, "killed": 16}
"""Parts that a failure is cut into. A probe that fails costs a worker where it hangs or kills, and one that passes next
to nothing: many small parts, of which few fail, are found sooner than halves."""


@dataclass(slots=True)
class _Family:
    """Parts of one that failed."""

    left: int
    has_failed: bool = False


@dataclass(slots=True)
class _Part:
    rows: tuple[int, ...]
    family: _Family


class Bisection:
    """The search through one microbatch.

    `part` is what to compute next. Where it fails it is cut in parts; where all of them pass but the last, that one is
    taken to fail without another try. Single rows are identified by `ALONE` failures. In the end all rows that are left
    are computed together, and that decides.

    Parameters
    ----------
    rows
        Positions of the microbatch's rows, in its order.
    fault
        How the whole is known to fail; None where that is not certain.

    Examples
    --------
    >>> search = Bisection(rows=[4, 5, 6, 7], fault="raised")
    >>> tries = 0
    >>> while not search.is_decided:
    ...     tries += 1
    ...     _ = search.failed("raised", "it is row 6") if 6 in search.part else search.passed()
    >>> list(search.identified), tries
    ([6], 5)
    """

    def __init__(self, rows: Sequence[int], fault: Fault | None) -> None:
        self.rows = tuple(rows)
        self.identified: dict[int, PoisonRow] = {}
        self.is_decided = False
        self._strikes: Counter[int] = Counter()
        self._todo: list[_Part] = []
        self._fanout = 2
        self._found = 0
        self._vain = 0
        if fault is not None:
            self._fanout = FANOUT[fault]
            self._split(self.rows)

    @property
    def part(self) -> tuple[int, ...]:
        """Rows to compute next, in the microbatch's order."""
        return self._todo[-1].rows if self._todo else self._rest

    @property
    def without(self) -> tuple[int, ...]:
        """The microbatch's other rows, ascending."""
        return tuple(sorted(set(self.rows) - set(self.part)))

    @property
    def is_stuck(self) -> bool:
        """Whether the whole keeps failing although every part of it passes."""
        return self._vain >= ROUNDS

    def passed(self) -> None:
        """Take in that the part went through."""
        if self.part == self._rest:
            self.is_decided = True
            self._todo.clear()
            return
        family = self._todo.pop().family
        family.left -= 1
        if family.left == 1 and not family.has_failed:
            self._split(self._todo.pop().rows)

    def failed(self, kind: Fault, error: str) -> PoisonRow | None:
        """Take in that the part failed; return the row that this identifies, if any."""
        rows = self.part
        self._fanout = FANOUT[kind]
        if self._todo:
            family = self._todo.pop().family
            family.left, family.has_failed = family.left - 1, True
        elif len(rows) > 1:
            self._vain = 0 if len(self.identified) > self._found else self._vain + 1
            self._found = len(self.identified)
        if len(rows) > 1:
            self._split(rows)
            return None
        (row,) = rows
        self._strikes[row] += 1
        if self._strikes[row] < ALONE:
            self._split(rows)
            return None
        self.identified[row] = PoisonRow(row=row, kind=kind, error=conceal(error))
        self.is_decided = not self._todo and not self._rest
        return self.identified[row]

    @property
    def _rest(self) -> tuple[int, ...]:
        return tuple(row for row in self.rows if row not in self.identified)

    def _split(self, rows: tuple[int, ...]) -> None:
        size = -(-len(rows) // self._fanout)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        family = _Family(len(parts))
        self._todo += [_Part(part, family) for part in reversed(parts)]
