"""Activations by reference: what one stage hands the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edge:
    """The border between two stages of a job, and the identity every activation over it must have."""

    job: str
    """Job id."""
    snapshot: str
    """Snapshot digest."""
    name: str
    """`0-1` from stage 0 to stage 1."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A reference to the tensors that crossed an edge; never the tensors themselves."""

    edge: Edge
    """Where it belongs."""
    partition: int
    """Partition number."""
    microbatch: int
    """Number inside the partition."""
    tensors: tuple[tuple[tuple[int, ...], str], ...]
    """(shape, dtype) of each, in order."""
    digest: str
    """xxh3-128 over the identity above and the bytes, hex."""
    chunk: int | None = None
    """Chunk number in the edge's Zarr array; None on the direct transport."""
