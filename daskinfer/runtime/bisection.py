"""Which rows of a microbatch break whoever computes them, found by computing parts of it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from daskinfer.spec.poison import PoisonRow
from daskinfer.spec.rows import Fault

ALONE = 2
"""Failures of a row all alone that convict it: a worker may be killed by chance once."""
ROUNDS = 3
"""Times that all rows together may fail although every part of them went through, before it is not the rows."""


@dataclass(slots=True)
class _Part:
    rows: tuple[int, ...]
    is_bad_if_twin_passes: bool = False
    """Whether its other half lies above it: when that passes, this one must be what fails."""


class Bisection:
    """The search through one microbatch.

    `part` is what to compute next. Where it fails it is halved; where the first half passes, the second is taken to
    fail without another try, for a failure may cost a worker. Single rows are convicted by `ALONE` failures. In the end
    all rows that are left are computed together, and that decides.

    Parameters
    ----------
    rows
        Positions of the microbatch's rows, in its order.
    is_bad
        Whether the whole is known to fail.
    """

    def __init__(self, rows: Sequence[int], is_bad: bool) -> None:
        self.rows = tuple(rows)
        self.convicted: dict[int, PoisonRow] = {}
        self.is_decided = False
        self._strikes: Counter[int] = Counter()
        self._todo: list[_Part] = []
        self._found = 0
        self._vain = 0
        if is_bad:
            self._split(self.rows)
        self._settle()

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
        self._todo.pop()
        if self._todo and self._todo[-1].is_bad_if_twin_passes:
            self._split(self._todo.pop().rows)
        self._settle()

    def failed(self, kind: Fault, error: str) -> PoisonRow | None:
        """Take in that the part failed; return the row that this convicts, if any."""
        rows = self.part
        if self._todo:
            self._todo.pop()
            if self._todo:
                self._todo[-1].is_bad_if_twin_passes = False
        elif len(rows) > 1:
            self._vain = 0 if len(self.convicted) > self._found else self._vain + 1
            self._found = len(self.convicted)
        if len(rows) > 1:
            self._split(rows)
            return None
        (row,) = rows
        self._strikes[row] += 1
        verdict = None
        if self._strikes[row] < ALONE:
            self._todo.append(_Part(rows))
        else:
            verdict = self.convicted[row] = PoisonRow(row=row, kind=kind, error=error)
        self._settle()
        return verdict

    @property
    def _rest(self) -> tuple[int, ...]:
        return tuple(row for row in self.rows if row not in self.convicted)

    def _split(self, rows: tuple[int, ...]) -> None:
        if len(rows) == 1:
            self._todo.append(_Part(rows))
            return
        middle = len(rows) // 2
        self._todo += [_Part(rows[middle:], is_bad_if_twin_passes=True), _Part(rows[:middle])]

    def _settle(self) -> None:
        if not self._todo and not self._rest:
            self.is_decided = True
