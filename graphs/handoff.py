"""What tasks hand to tasks: a partition's tokens, and what a stage passes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskinfer.spec.activation import Activation
from daskinfer.spec.rows import Microbatch
from daskinfer.storage.activations import DirectActivation


@dataclass(frozen=True, slots=True)
class JobHandle:
    """Where a task finds everything else about its job."""

    workspace: str
    """URL of the workspace."""
    job: str
    """Job id."""
    epoch: int
    """Life of the driver that submitted the task."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A partition's accepted rows as token ids, and the microbatches they were packed into."""

    ids: np.ndarray
    """All rows end to end, int32, shape (tokens,)."""
    starts: np.ndarray
    """First token of every row and the end of the last, int64, shape (rows + 1,)."""
    pad: int
    """Id that fills short rows."""
    microbatches: tuple[Microbatch, ...]
    """In order of number."""

    @property
    def lengths(self) -> np.ndarray:
        """Length of every row in tokens, int64, shape (rows,)."""
        return np.diff(self.starts)

    def padded(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a microbatch as (ids int32 (rows, length), lengths int32 (rows,))."""
        microbatch = self.microbatches[number]
        ids = np.full((len(microbatch.rows), microbatch.length), self.pad, dtype=np.int32)
        lengths = np.empty(len(microbatch.rows), dtype=np.int32)
        for place, row in enumerate(microbatch.rows):
            begin, end = self.starts[row], self.starts[row + 1]
            ids[place, : end - begin] = self.ids[begin:end]
            lengths[place] = end - begin
        return ids, lengths


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
        return self.payload.value.nbytes if isinstance(self.payload, DirectActivation) else 0
