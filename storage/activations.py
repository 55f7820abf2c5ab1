"""Activations on their way from one stage to the next, over Zarr chunks or over Dask's own transfer.

A transport writes a bundle of tensors and returns a reference that carries their identity and digest; the receiving
side checks all of it before a byte is used. What comes out is always a fresh, aligned copy: the bits of a BLAS result
may depend on the alignment of its operands, and neither Dask nor a file promises any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import zarr
from zarr.abc.store import Store, SupportsSyncStore
from zarr.buffer import cpu
from zarr.core.sync import sync
from zarr.errors import ArrayNotFoundError
from zarr.storage import FsspecStore, LocalStore

import daskinfer.storage.bfloat16  # noqa: F401  registers the data type with Zarr
from daskinfer.errors import StorageError
from daskinfer.spec.activation import Activation, Edge
from daskinfer.spec.outline import TensorSpec, largest_bundle
from daskinfer.storage.bundles import (
    DTYPES,
    Array,
    Bundle,
    bytes_of,
    check_reference,
    corrupt,
    pack,
    prepare,
    refer,
    take,
    unpack,
)
from daskinfer.storage.filesystem import delete, open_filesystem, reveal_url
from daskinfer.storage.store_errors import explain_errors
from daskinfer.storage.urls import absolute_url, is_local

Sent = TypeVar("Sent")

_READABLE = {"float64", "float32", "bfloat16", "float16"}


class Transport(Protocol[Sent]):
    """How the activations of one edge travel. `Sent` is what the graph passes from the sender to the receiver."""

    def create(self) -> None:
        """Make the edge ready, once, by the driver; a second call changes nothing."""

    def send(self, partition: int, microbatch: int, chunk: int, value: Bundle) -> Sent:
        """Hand over a microbatch's arrays under their identity; `chunk` is a slot no other microbatch uses."""

    def receive(self, sent: Sent, partition: int, microbatch: int) -> Bundle:
        """Return the arrays, each fresh, writable and aligned to 64 bytes, once they are proven right.

        Raises
        ------
        SnapshotSkew
            They were computed on another snapshot.
        CorruptActivation
            They are missing, short, damaged or belong elsewhere.
        """

    def delete(self, chunks: Iterable[int]) -> None:
        """Forget what is in these slots; empty ones are passed over."""

    def drop(self) -> None:
        """Remove the whole edge."""


@dataclass(frozen=True)
class ZarrTransport:
    """One Zarr v3 array for an edge, one microbatch a chunk: durable, and readable by anything that reads Zarr.

    The array has no compressor. Where one floating-point tensor (rows, length, hidden) crosses the edge, its shape is
    (chunks * capacity, hidden): a microbatch of r rows and t tokens fills the first r * t rows of its chunk. Any other
    bundle lies as bytes in (chunks, bytes of the largest one), tensors end to end, each aligned. The rest is zero.
    """

    url: str
    """Where the array lies."""
    edge: Edge
    """The identity of everything that is sent."""
    tensors: tuple[TensorSpec, ...]
    """What crosses the edge."""
    capacity: int
    """Most padded tokens of a microbatch, rows * length."""
    max_length: int
    """Longest length in tokens; 1 where all rows have the same."""
    chunks: int
    """Slots, as many as microbatches may be in flight."""

    def create(self) -> None:
        """Create the array, or keep the one there is if it fits.

        Raises
        ------
        StorageError
            Something else is stored there.
        """
        with explain_errors(self.url, "create"):
            if not self._is_created():
                # A resume may have another window, hence another number of chunks; their values are recomputed anyway.
                zarr.create_array(
                    _open_store(self.url),
                    shape=self._shape,
                    chunks=self._chunk_shape,
                    dtype=self._stored,
                    filters=None,
                    compressors=None,
                    fill_value=0,
                    attributes=self._identity,
                    config={"write_empty_chunks": True},
                    overwrite=True,
                )

    def send(self, partition: int, microbatch: int, chunk: int, value: Bundle) -> Activation:
        """Write `value` as the whole chunk `chunk` and return its reference.

        Raises
        ------
        ValueError
            These are not the edge's tensors, or they do not fit a chunk.
        """
        bundle = prepare(value, self.tensors)
        if not 0 <= chunk < self.chunks:
            raise ValueError(f"there is no chunk {chunk} among {self.chunks}")
        frame = pack(bundle, self._chunk_bytes)
        activation = refer(self.edge, partition, microbatch, bundle, chunk)
        with explain_errors(self.url, "write"):
            _set(_open_store(self.url), _chunk_key(chunk), frame)
        return activation

    def receive(self, sent: Activation, partition: int, microbatch: int) -> Bundle:
        """Read the chunk of a reference and return its arrays, checked."""
        check_reference(sent, self.edge, partition, microbatch, self.tensors)
        if sent.chunk is None or not 0 <= sent.chunk < self.chunks:
            raise corrupt(sent, f"it names no chunk among {self.chunks}")
        with explain_errors(self.url, "read"):
            frame = _get(_open_store(self.url), _chunk_key(sent.chunk))
        if frame is None:
            raise corrupt(sent, f"its chunk is missing from {self.url}")
        if frame.size != self._chunk_bytes:
            raise corrupt(sent, f"its chunk has {frame.size} bytes instead of {self._chunk_bytes}")
        return take(sent, unpack(sent, frame))

    def delete(self, chunks: Iterable[int]) -> None:
        """Delete the objects of these chunks."""
        with explain_errors(self.url, "delete from"):
            for chunk in chunks:
                _delete(_open_store(self.url), _chunk_key(chunk))

    def drop(self) -> None:
        """Delete the array."""
        delete(self.url, recursive=True)

    @property
    def _stored(self) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self._hidden is None else DTYPES[self.tensors[0].dtype]

    @property
    def _shape(self) -> tuple[int, int]:
        return (self.chunks * self._chunk_shape[0], self._chunk_shape[1])

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        if self._hidden is None:
            return (1, largest_bundle(self.tensors, self.capacity, self.max_length))
        return (self.capacity, self._hidden)

    @property
    def _chunk_bytes(self) -> int:
        return prod(self._chunk_shape) * self._stored.itemsize

    @property
    def _hidden(self) -> int | None:
        """Width of the one tensor (rows, length, hidden) where that is all; other bundles are stored as bytes."""
        match self.tensors:
            case (TensorSpec(dtype=dtype, dims=((0, 1, 0, 0), (0, 0, 1, 0), (hidden, 0, 0, 0))),) if dtype in _READABLE:
                return hidden
        return None

    @property
    def _identity(self) -> dict[str, Any]:
        return {"job": self.edge.job, "snapshot": self.edge.snapshot, "edge": self.edge.name}

    def _is_created(self) -> bool:
        try:
            array = zarr.open_array(_open_store(self.url), mode="r")
        except (ArrayNotFoundError, FileNotFoundError):
            return False
        if array.attrs.asdict() != self._identity:
            raise StorageError(
                f"{self.url} is not the activation array of job {self.edge.job}, edge {self.edge.name}",
                hint="Delete it, or choose another workspace.",
            )
        wanted = (self._shape, self._chunk_shape, self._stored)
        return (array.shape, array.chunks, array.dtype) == wanted


@dataclass(frozen=True)
class DirectActivation:
    """A reference together with its arrays, for Dask to move."""

    activation: Activation
    """What the arrays must be."""
    value: Bundle
    """The arrays, in C order."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.value)

    def __sizeof__(self) -> int:
        # Dask accounts for memory by sys.getsizeof where it does not know a type.
        return object.__sizeof__(self) + self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        # As plain bytes an array leaves the pickle without a copy; numpy does that for its own dtypes only.
        return _restore, (self.activation, *((bytes_of(array), array.dtype, array.shape) for array in self.value))


@dataclass(frozen=True)
class DirectTransport:
    """Dask's own transfer between workers: nothing at rest, the same checks."""

    edge: Edge
    """The identity of everything that is sent."""
    tensors: tuple[TensorSpec, ...]
    """What crosses the edge."""

    def create(self) -> None:
        """There is nothing to create."""

    def send(self, partition: int, microbatch: int, chunk: int, value: Bundle) -> DirectActivation:
        """Return `value` with its reference; the chunk number plays no part."""
        bundle = prepare(value, self.tensors)
        return DirectActivation(refer(self.edge, partition, microbatch, bundle, None), bundle)

    def receive(self, sent: DirectActivation, partition: int, microbatch: int) -> Bundle:
        """Return copies of the arrays that arrived, checked."""
        check_reference(sent.activation, self.edge, partition, microbatch, self.tensors)
        arrived = tuple((array.shape, array.dtype.name) for array in sent.value)
        if arrived != sent.activation.tensors:
            raise corrupt(sent.activation, f"arrays of other shapes arrived: {arrived}")
        return take(sent.activation, map(bytes_of, sent.value))

    def delete(self, chunks: Iterable[int]) -> None:
        """There is nothing to delete: Dask forgets a value with its last future."""

    def drop(self) -> None:
        """There is nothing to drop."""


def _restore(activation: Activation, *parts: tuple[Array, np.dtype[Any], tuple[int, ...]]) -> DirectActivation:
    return DirectActivation(activation, tuple(content.view(dtype).reshape(shape) for content, dtype, shape in parts))


def _chunk_key(chunk: int) -> str:
    return f"c/{chunk}/0"


_opening = threading.Lock()


def _open_store(url: str) -> Store:
    with _opening:  # tasks of one worker start together, and two stores would hold two connection pools
        return _stores(url)


@lru_cache(maxsize=64)
def _stores(url: str) -> Store:
    if is_local(url):
        # FsspecStore writes local files in place: a killed writer would leave a torn chunk under its final name.
        return LocalStore(open_filesystem(url)[1])
    return FsspecStore.from_url(reveal_url(absolute_url(url)), storage_options={"use_listings_cache": False})


# Chunks go through the store and not through the array: a missing chunk must be an error and not zeros, the length
# as stored must be seen, and it is quicker. Local stores work in the calling thread, the others on Zarr's event loop.


def _get(store: Store, key: str) -> Array | None:
    if isinstance(store, SupportsSyncStore):
        buffer = store.get_sync(key, prototype=cpu.buffer_prototype)
    else:
        buffer = sync(store.get(key, cpu.buffer_prototype))
    return None if buffer is None else cast(Array, buffer.as_numpy_array())


def _set(store: Store, key: str, frame: Array) -> None:
    buffer = cpu.Buffer.from_array_like(frame)
    if isinstance(store, SupportsSyncStore):
        store.set_sync(key, buffer)
    else:
        sync(store.set(key, buffer))


def _delete(store: Store, key: str) -> None:
    if isinstance(store, SupportsSyncStore):
        store.delete_sync(key)
    else:
        sync(store.delete(key))
