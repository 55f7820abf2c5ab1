"""The choices of a simulation, drawn by Hypothesis one by one, so that a failure shrinks to few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from hypothesis import strategies as st

_T = TypeVar("_T")
_CHANCES = 1000
"""Faults are told as so many in a thousand turns."""


class Chooser:
    """Chooses what happens next; 0 is always that the oldest goes on and nothing breaks.

    Parameters
    ----------
    data
        What Hypothesis gives a test to draw from.
    most
        Choices after which all is calm: Hypothesis draws only so many in one example.
    """

    def __init__(self, data: st.DataObject, most: int = 1500) -> None:
        self._data = data
        self._left = most
        self.is_cut_off = False
        """Whether Hypothesis has ended the example in the middle of something, so that nothing more can be said."""

    @property
    def is_calm(self) -> bool:
        """Whether nothing is drawn any more."""
        return self._left <= 0

    def calm(self) -> None:
        """From now on let the oldest go on and nothing break."""
        self._left = 0

    def below(self, count: int) -> int:
        """Return a number from 0 to `count - 1`."""
        if count <= 1 or self._left <= 0:
            return 0
        self._left -= 1
        try:
            # As `data.draw(st.integers(0, count - 1))`, which takes eight times as long and prints every draw.
            return self._data.conjecture_data.draw_integer(0, count - 1)
        except BaseException:
            self.is_cut_off = True
            self.calm()
            raise

    def pick(self, things: Sequence[_T]) -> _T:
        """Return one of these; the first where all is calm."""
        return things[self.below(len(things))]

    def pick_some(self, things: Sequence[_T]) -> list[_T]:
        """Return some of these, or none."""
        chosen = self.below(2 ** len(things))
        return [thing for number, thing in enumerate(things) if chosen >> number & 1]

    def happens(self, chances: int) -> bool:
        """Whether something happens that happens so many times in a thousand."""
        return self.below(_CHANCES) >= _CHANCES - chances

    def turn(self, faults: Mapping[str, int]) -> str:
        """Return which fault comes now, or an empty string; from some turn on, all is calm.

        Parameters
        ----------
        faults
            Fault -> how often in a thousand turns.
        """
        if self._left <= 0 or not faults:
            return ""
        chosen = self.below(_CHANCES)
        if chosen == 0:  # what Hypothesis shrinks to, so that an example has as few turns as the failure needs
            self.calm()
        for fault, chances in faults.items():
            if chosen >= _CHANCES - chances:
                return fault
            chosen += chances
        return ""
