"""Blocks: the runs of partitions that drivers which share a job claim one at a time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache

from daskinfer.spec.job.record import JobRecord

TURNS = 32
"""How many more blocks of its size the job has left, at least, where a block is cut: the last ones are the smallest, so
that no member waits long for what another one holds."""


@dataclass(frozen=True)
class Blocks:
    """How a job's partitions are cut into blocks; all its members cut alike.

    Parameters
    ----------
    partitions
        How many there are.
    largest
        Most partitions of a block: about as many as fill a window.
    """

    partitions: int
    largest: int

    @cached_property
    def starts(self) -> list[int]:
        """The first partition of every block, in order: blocks go by it."""
        starts, begin = [], 0
        while begin < self.partitions:
            starts.append(begin)
            begin += min(self.largest, max(1, (self.partitions - begin) // TURNS))
        return starts

    def find(self, partition: int) -> int:
        """Return the block of a partition."""
        return self.starts[bisect_right(self.starts, partition) - 1]

    def partitions_of(self, block: int) -> range:
        """Return the partitions of a block."""
        following = bisect_right(self.starts, block)
        return range(block, self.starts[following] if following < len(self.starts) else self.partitions)


def cut_blocks(record: JobRecord) -> Blocks:
    """Return a job's blocks, as its record decides them.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> blocks = cut_blocks(SimpleNamespace(partitions=100, plan=SimpleNamespace(window=8)))
    >>> blocks.partitions_of(0), blocks.find(2), len(blocks.starts)
    (range(0, 3), 0, 80)
    """
    return _cut(record.partitions, record.plan.window)


_cut = lru_cache(maxsize=8)(Blocks)
