"""What tasks hand to tasks: a partition's encoded rows, and what a stage passes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daskinfer.models.preprocessing.encoding import EncodedRows
from daskinfer.spec.activation import Activation
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.rows import Microbatch
from daskinfer.storage.activations.transports import DirectActivation


@dataclass(frozen=True, slots=True)
class JobHandle:
    """Where a task finds everything else about its job."""

    workspace: str
    """URL of the workspace."""
    job: str
    """Job id."""
    epoch: int
    """Life of the driver that submitted the task."""
    pin: SnapshotPin
    """The snapshot that it computes on. A worker never maps a name to weights by itself."""
    round: int = 0
    """Number of the retry that it belongs to; 0 for the run."""
    member: str = ""
    """Id of the driver among the members of the job; empty where it runs the job alone."""
    connection: int = 0
    """Connection to a scheduler that the driver submitted it over; what one left behind means nothing to the next."""
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    """Secrets of the job's URLs, by name: for the worker's memory, and never written."""

    @property
    def driver(self) -> str:
        """Who submitted the task, and over which connection."""
        return ".".join(filter(None, (str(self.epoch), self.member, str(self.connection))))


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A partition's rows as the model takes them, and the microbatches they were packed into."""

    rows: EncodedRows
    """What is left of the partition's accepted rows."""
    refused: dict[int, str]
    """Accepted rows, by number, that could not be encoded -> why."""
    microbatches: tuple[Microbatch, ...]
    """In order of number."""
    positions: NDArray[np.int32]
    """Position in the partition of every row, ascending."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and 8 for every item's place in a microbatch."""
        texts = self.rows.ids.nbytes + 2 * self.rows.starts.nbytes + self.positions.nbytes + self.rows.truncated.nbytes
        texts += 0 if self.rows.types is None else self.rows.types.nbytes
        return texts + sum(array.nbytes for array in self.rows.arrays.values())

    def items(self, number: int, without: Collection[int] = ()) -> tuple[int, ...]:
        """Return a microbatch's items in order, but for those of the rows at some positions in the partition."""
        items = self.microbatches[number].rows
        if not without:
            return items
        kept = ~np.isin(self._positions_of(items), list(without))
        return tuple(np.asarray(items)[kept].tolist())

    def positions_in(self, number: int) -> tuple[int, ...]:
        """Return the positions in the partition of a microbatch's rows, in its order and each once."""
        return tuple(dict.fromkeys(self._positions_of(self.microbatches[number].rows).tolist()))

    def batch(self, number: int, without: Collection[int] = ()) -> dict[str, np.ndarray]:
        """Return a microbatch as the model's inputs, (items, ...) each: padded as ever, whatever is left out."""
        return self.rows.batch(self.items(number, without), self.microbatches[number].length)

    def _positions_of(self, items: tuple[int, ...]) -> NDArray[np.int32]:
        chosen = np.asarray(items, dtype=np.int64)
        return self.positions[chosen if self.rows.variants is None else self.rows.variants.rows[chosen]]


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage's work on one microbatch."""

    stage: int
    worker: str
    snapshot: str
    compute: float
    """Seconds inside the model."""
    receive: float
    """Seconds reading and checking the activation."""
    send: float
    """Seconds writing the activation."""
    out_of_memory: int
    """Times that it did not fit the device and was run in smaller parts."""
    device_peak: int
    """Most bytes that the worker has held on its device; 0 on CPUs."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """What a stage passes on: an activation to the next stage, or its rows to the commit."""

    payload: Activation | DirectActivation | dict[str, np.ndarray]
    trail: tuple[Hop, ...]
    """Every stage so far, in order."""

    @property
    def nbytes(self) -> int:
        """Bytes that Dask would have to move."""
        if isinstance(self.payload, dict):
            return sum(value.nbytes for value in self.payload.values())
        return self.payload.nbytes if isinstance(self.payload, DirectActivation) else 0
