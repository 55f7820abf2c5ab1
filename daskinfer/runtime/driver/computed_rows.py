"""How far the partitions are that are not committed yet, by the microbatches that came out of the last stage."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.runtime.protocol.keys import PartitionKey


@dataclass(slots=True)
class _Open:
    rows: int
    microbatches: int
    done: int = 0


class Advance:
    """Rows that are computed and wait for the rest of their partition.

    Examples
    --------
    >>> advance = Advance()
    >>> advance.begin((0, 5), rows=100, microbatches=4)
    >>> advance.step((0, 5))
    >>> advance.rows
    25
    """

    def __init__(self) -> None:
        self._open: dict[PartitionKey, _Open] = {}

    def begin(self, place: PartitionKey, rows: int, microbatches: int) -> None:
        """Note a partition that was read; one that is read again begins anew."""
        self._open[place] = _Open(rows, microbatches)

    def step(self, place: PartitionKey) -> None:
        """Count a microbatch; one that is computed twice cannot make more than all of them."""
        found = self._open.get(place)
        if found is not None:
            found.done = min(found.done + 1, found.microbatches)

    def end(self, place: PartitionKey) -> None:
        """Forget a partition: its rows count as committed now, or not at all."""
        self._open.pop(place, None)

    def drop(self, generation: int) -> None:
        """Forget all partitions of a generation that nothing is computed on any more."""
        self._open = {place: each for place, each in self._open.items() if place[0] != generation}

    def clear(self) -> None:
        """Forget all: what was under way is lost."""
        self._open.clear()

    @property
    def rows(self) -> int:
        """Rows by now, in proportion to the microbatches of each partition."""
        return int(sum(each.rows * each.done / each.microbatches for each in self._open.values() if each.microbatches))
