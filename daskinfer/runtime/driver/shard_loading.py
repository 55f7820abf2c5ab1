"""How far the shards of a job are on their way into its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Load:
    """A shard that a worker was asked to load."""

    nbytes: int = 0
    complete: bool = False


class ShardLoading:
    """Bytes of the shards that workers were asked to load, as stored.

    Parameters
    ----------
    sizes
        Bytes of every stage's shard.

    Examples
    --------
    >>> loads = ShardLoading([1000, 500])
    >>> loads.begin(0, "tcp://a:1")
    >>> loads.tell(0, "tcp://a:1", 250)
    >>> loads.loaded_bytes, loads.total_bytes, loads.loaded_shards
    (250, 1000, 0)
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._loads: dict[tuple[int, str], _Load] = {}

    def begin(self, stage: int, worker: str) -> None:
        """Note that a worker was asked for a shard."""
        self._loads[stage, worker] = _Load()

    def tell(self, stage: int, worker: str, nbytes: int) -> None:
        """Take over what a worker says of the shard that it was asked for."""
        load = self._loads.get((stage, worker))
        if load is not None and not load.complete:
            load.nbytes = min(nbytes, self._sizes[stage])

    def finish(self, stage: int, worker: str) -> None:
        """Note that a shard is in place, read or found there."""
        load = self._loads.get((stage, worker))
        if load is not None:
            load.nbytes, load.complete = self._sizes[stage], True

    def clear(self) -> None:
        """Forget all workers: they were another cluster's."""
        self._loads.clear()

    def drop(self, worker: str, stage: int | None = None) -> None:
        """Forget a worker that is gone, or one of its shards."""
        for place in [place for place in self._loads if place[1] == worker and stage in (None, place[0])]:
            del self._loads[place]

    @property
    def loaded_bytes(self) -> int:
        """Bytes that have arrived."""
        return sum(load.nbytes for load in self._loads.values())

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(self._sizes[stage] for stage, _ in self._loads)

    @property
    def loaded_shards(self) -> int:
        """Shards in place."""
        return sum(load.complete for load in self._loads.values())

    @property
    def total_shards(self) -> int:
        """Shards in all."""
        return len(self._loads)
