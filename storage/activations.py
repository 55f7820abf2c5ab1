"""Activations on their way from one stage to the next, over Zarr chunks or over Dask's own transfer.

A transport writes a tensor and returns a reference that carries the tensor's identity and digest; the receiving side
checks all of it before a byte is used. What comes out is always a fresh, aligned copy: the bits of a BLAS result may
depend on the alignment of its operands, and neither Dask nor a file promises any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import ml_dtypes
import numpy as np
import xxhash
import zarr
from zarr.abc.store import Store, SupportsSyncStore
from zarr.buffer import cpu
from zarr.core.sync import sync
from zarr.errors import ArrayNotFoundError
from zarr.storage import FsspecStore, LocalStore

import daskinfer.storage.bfloat16  # noqa: F401  registers the data type with Zarr
from daskinfer.errors import CorruptActivation, SnapshotSkew, StorageError
from daskinfer.ids import canonical_json, shorten
from daskinfer.spec.activation import Activation, Edge
from daskinfer.storage.filesystem import absolute_url, delete, explain_errors, is_local, open_filesystem

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Sent = TypeVar("Sent")

ALIGNMENT = 64
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Transport(Protocol[Sent]):
    """How the activations of one edge travel. `Sent` is what the graph passes from the sender to the receiver."""

    def create(self) -> None:
        """Make the edge ready, once, by the driver; a second call changes nothing."""

    def send(self, partition: int, microbatch: int, chunk: int, value: Array) -> Sent:
        """Hand over `value` (rows, tokens, hidden) under its identity; `chunk` is a slot no other microbatch uses."""

    def receive(self, sent: Sent, partition: int, microbatch: int) -> Array:
        """Return the value (rows, tokens, hidden), fresh, writable and aligned to 64 bytes, once it is proven right.

        Raises
        ------
        SnapshotSkew
            The value was computed on another snapshot.
        CorruptActivation
            It is missing, short, damaged or belongs elsewhere.
        """

    def delete(self, chunks: Iterable[int]) -> None:
        """Forget the values in these slots; slots without one are passed over."""

    def drop(self) -> None:
        """Remove the whole edge."""


@dataclass(frozen=True)
class ZarrTransport:
    """One Zarr v3 array for an edge, one microbatch a chunk: durable, and readable by anything that reads Zarr.

    The array has shape (chunks * capacity, hidden) and no compressor. A microbatch of r rows and t tokens fills the
    first r * t rows of its chunk; the others are zero.
    """

    url: str
    """Where the array lies."""
    edge: Edge
    """The identity of everything that is sent."""
    capacity: int
    """Tokens in a chunk: the most that a microbatch may have."""
    hidden: int
    """Width of the activations."""
    dtype: str
    """float32, bfloat16 or float16."""
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
                    chunks=(self.capacity, self.hidden),
                    dtype=self._native,
                    filters=None,
                    compressors=None,
                    fill_value=0,
                    attributes=self._identity,
                    config={"write_empty_chunks": True},
                    overwrite=True,
                )

    def send(self, partition: int, microbatch: int, chunk: int, value: Array) -> Activation:
        """Write `value` as the whole chunk `chunk` and return its reference.

        Raises
        ------
        ValueError
            The value has another dtype or width, or does not fit a chunk.
        """
        _check_value(value, self.dtype, self.hidden)
        rows, tokens = value.shape[0], value.shape[1]
        if rows * tokens > self.capacity or not 0 <= chunk < self.chunks:
            raise ValueError(
                f"{rows} x {tokens} tokens do not fit chunk {chunk} of {self.chunks} chunks of {self.capacity} tokens"
            )
        frame = np.empty(self._chunk_bytes, np.uint8)
        frame[: value.nbytes] = _bytes_of(value)
        frame[value.nbytes :] = 0
        activation = _refer(self.edge, partition, microbatch, value, self.dtype, chunk)
        with explain_errors(self.url, "write"):
            _set(_open_store(self.url), _chunk_key(chunk), frame)
        return activation

    def receive(self, sent: Activation, partition: int, microbatch: int) -> Array:
        """Read the chunk of a reference and return its value (rows, tokens, hidden), checked."""
        _check_identity(sent, self.edge, partition, microbatch, self.dtype, self.hidden)
        if sent.chunk is None or not 0 <= sent.chunk < self.chunks or _tokens_of(sent) > self.capacity:
            raise _corrupt(sent, f"it does not fit an array of {self.chunks} chunks of {self.capacity} tokens")
        with explain_errors(self.url, "read"):
            frame = _get(_open_store(self.url), _chunk_key(sent.chunk))
        if frame is None:
            raise _corrupt(sent, f"its chunk is missing from {self.url}")
        if frame.size != self._chunk_bytes:
            raise _corrupt(sent, f"its chunk has {frame.size} bytes instead of {self._chunk_bytes}")
        return _take(sent, frame)

    def delete(self, chunks: Iterable[int]) -> None:
        """Delete the objects of these chunks."""
        with explain_errors(self.url, "delete from"):
            for chunk in chunks:
                _delete(_open_store(self.url), _chunk_key(chunk))

    def drop(self) -> None:
        """Delete the array."""
        delete(self.url, recursive=True)

    @property
    def _native(self) -> np.dtype[Any]:
        return _DTYPES[self.dtype]

    @property
    def _shape(self) -> tuple[int, int]:
        return (self.chunks * self.capacity, self.hidden)

    @property
    def _chunk_bytes(self) -> int:
        return self.capacity * self.hidden * self._native.itemsize

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
        wanted = (self._shape, (self.capacity, self.hidden), self._native)
        return (array.shape, array.chunks, array.dtype) == wanted


@dataclass(frozen=True)
class DirectActivation:
    """A reference together with its value, for Dask to move."""

    activation: Activation
    """What the value must be."""
    value: Array
    """(rows, tokens, hidden)."""

    def __sizeof__(self) -> int:
        # Dask accounts for memory by sys.getsizeof where it does not know a type.
        return object.__sizeof__(self) + self.value.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        # As plain bytes the value leaves the pickle without a copy; numpy does that for its own dtypes only.
        value = self.value
        return _restore, (self.activation, _bytes_of(value), value.dtype, value.shape)


@dataclass(frozen=True)
class DirectTransport:
    """Dask's own transfer between workers: nothing at rest, the same checks."""

    edge: Edge
    """The identity of everything that is sent."""
    hidden: int
    """Width of the activations."""
    dtype: str
    """float32, bfloat16 or float16."""

    def create(self) -> None:
        """There is nothing to create."""

    def send(self, partition: int, microbatch: int, chunk: int, value: Array) -> DirectActivation:
        """Return `value` with its reference; the chunk number plays no part."""
        _check_value(value, self.dtype, self.hidden)
        return DirectActivation(_refer(self.edge, partition, microbatch, value, self.dtype, None), value)

    def receive(self, sent: DirectActivation, partition: int, microbatch: int) -> Array:
        """Return a copy of the value that arrived, checked."""
        activation, value = sent.activation, sent.value
        _check_identity(activation, self.edge, partition, microbatch, self.dtype, self.hidden)
        if value.dtype != _DTYPES[self.dtype] or value.shape != activation.shape:
            raise _corrupt(activation, f"a {value.dtype} array of shape {value.shape} arrived")
        return _take(activation, _bytes_of(value))

    def delete(self, chunks: Iterable[int]) -> None:
        """There is nothing to delete: Dask forgets a value with its last future."""

    def drop(self) -> None:
        """There is nothing to drop."""


def _restore(activation: Activation, content: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> DirectActivation:
    return DirectActivation(activation, content.view(dtype).reshape(shape))


def _refer(edge: Edge, partition: int, microbatch: int, value: Array, dtype: str, chunk: int | None) -> Activation:
    shape = tuple(value.shape)
    digest = _digest(edge, partition, microbatch, shape, dtype, _bytes_of(value))
    return Activation(edge, partition, microbatch, shape, dtype, digest, chunk)


def _digest(edge: Edge, partition: int, microbatch: int, shape: tuple[int, ...], dtype: str, content: Array) -> str:
    identity = [edge.job, edge.snapshot, edge.name, partition, microbatch, shape, dtype]
    hasher = xxhash.xxh3_128(canonical_json(identity))
    hasher.update(content.data)
    return hasher.hexdigest()


def _take(activation: Activation, frame: Array) -> Array:
    """Return an aligned copy of the value at the start of `frame`, once its digest is right."""
    native = _DTYPES[activation.dtype]
    size = _tokens_of(activation) * activation.shape[2] * native.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    content = room[start : start + size]
    content[:] = frame[:size]
    # The copy is what gets used, so the copy is what gets checked.
    found = _digest(
        activation.edge, activation.partition, activation.microbatch, activation.shape, activation.dtype, content
    )
    if found != activation.digest:
        raise _corrupt(activation, f"its digest is {found} instead of {activation.digest}")
    return content.view(native).reshape(activation.shape)


def _check_value(value: Array, dtype: str, hidden: int) -> None:
    if value.ndim != 3 or value.shape[2] != hidden or value.size == 0 or value.dtype != _DTYPES[dtype]:
        raise ValueError(f"a {value.dtype} array of shape {value.shape} is not (rows, tokens, {hidden}) of {dtype}")


def _check_identity(
    activation: Activation, edge: Edge, partition: int, microbatch: int, dtype: str, hidden: int
) -> None:
    found = activation.edge
    if found.snapshot != edge.snapshot:
        raise SnapshotSkew(
            f"{_describe(activation)} was computed on snapshot {shorten(found.snapshot)}, "
            f"the job runs on {shorten(edge.snapshot)}"
        )
    wanted = {
        "job": (found.job, edge.job),
        "edge": (found.name, edge.name),
        "partition": (activation.partition, partition),
        "microbatch": (activation.microbatch, microbatch),
        "dtype": (activation.dtype, dtype),
    }
    for what, (is_, should_be) in wanted.items():
        if is_ != should_be:
            raise _corrupt(activation, f"its {what} is {is_!r} where {should_be!r} was expected")
    shape = activation.shape
    if len(shape) != 3 or min(shape) < 1 or shape[2] != hidden:
        raise _corrupt(activation, f"its shape is {shape} where (rows, tokens, {hidden}) was expected")


def _describe(activation: Activation) -> str:
    place = "" if activation.chunk is None else f", chunk {activation.chunk}"
    return (
        f"activation of edge {activation.edge.name}, partition {activation.partition}, "
        f"microbatch {activation.microbatch}{place}"
    )


def _corrupt(activation: Activation, what: str) -> CorruptActivation:
    return CorruptActivation(f"{_describe(activation)}: {what}")


def _tokens_of(activation: Activation) -> int:
    return activation.shape[0] * activation.shape[1]


def _bytes_of(value: Array) -> Array:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


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
    return FsspecStore.from_url(absolute_url(url), storage_options={"use_listings_cache": False})


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
