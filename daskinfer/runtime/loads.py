"""How far the shards of a job are on their way into its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Load:
    """A shard that a worker was asked to load."""

    stage: int
    nbytes: int = 0
    complete: bool = False


class Loads:
    """Bytes of the shards that workers were asked to load, as stored.

    Parameters
    ----------
    sizes
        Bytes of every stage's shard.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._loads: dict[str, _Load] = {}

    def begin(self, stage: int, worker: str) -> None:
        """Note that a worker was asked for its one shard."""
        self._loads[worker] = _Load(stage)

    def tell(self, stage: int, worker: str, nbytes: int) -> None:
        """Take over what a worker says of the shard that it was asked for."""
        load = self._loads.get(worker)
        if load is not None and load.stage == stage and not load.complete:
            load.nbytes = min(nbytes, self._sizes[stage])

    def finish(self, stage: int, worker: str) -> None:
        """Note that a shard is in place, read or found there."""
        load = self._loads.get(worker)
        if load is not None and load.stage == stage:
            load.nbytes, load.complete = self._sizes[stage], True

    def clear(self) -> None:
        """Forget all workers: they were another cluster's."""
        self._loads.clear()

    def drop(self, worker: str) -> None:
        """Forget a worker that is gone, or could not."""
        self._loads.pop(worker, None)

    @property
    def loaded_bytes(self) -> int:
        """Bytes that have arrived."""
        return sum(load.nbytes for load in self._loads.values())

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(self._sizes[load.stage] for load in self._loads.values())

    @property
    def loaded_shards(self) -> int:
        """Shards in place."""
        return sum(load.complete for load in self._loads.values())

    @property
    def total_shards(self) -> int:
        """Shards in all."""
        return len(self._loads)
