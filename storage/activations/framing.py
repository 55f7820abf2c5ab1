"""Bundles: the tensors that cross an edge together, as bytes under one reference that tells all about them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import xxhash

from daskinfer.errors import CorruptActivation, SnapshotSkew
from daskinfer.ids import canonical_json, shorten
from daskinfer.spec.activation import Activation, Edge
from daskinfer.spec.outline import ALIGNMENT, ITEM_BYTES, TensorSpec, bundle_offsets

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Bundle: TypeAlias = tuple[Array, ...]

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in ITEM_BYTES if name != "bfloat16"}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


def prepare(value: Bundle, tensors: tuple[TensorSpec, ...]) -> Bundle:
    """Return a sender's arrays in C order.

    Raises
    ------
    ValueError
        They are not what the edge carries.

    Examples
    --------
    >>> hidden = (TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (4, 0, 0, 0))),)
    >>> prepare((np.zeros((4, 2), np.float32).T,), hidden)[0].flags.c_contiguous
    True
    >>> prepare((np.zeros((2, 4)),), hidden)
    Traceback (most recent call last):
        ...
    ValueError: float64 [2, 4] is not what the edge carries: float32 [any, 4]
    """
    found = tuple((array.shape, array.dtype.name) for array in value)
    if not _match(found, tensors) or any(array.dtype != DTYPES[array.dtype.name] for array in value):
        raise ValueError(f"{_tell(found)} is not what the edge carries: {_tell_wanted(tensors)}")
    return tuple(np.asarray(array, order="C") for array in value)


def refer(edge: Edge, partition: int, microbatch: int, bundle: Bundle, chunk: int | None) -> Activation:
    """Return the reference of arrays in C order.

    Examples
    --------
    >>> edge = Edge(job="j1", snapshot="0" * 64, name="0-1")
    >>> found = refer(edge, partition=3, microbatch=0, bundle=(np.zeros((2, 4), np.float32),), chunk=None)
    >>> found.tensors, len(found.digest)
    ((((2, 4), 'float32'),), 32)
    """
    tensors = tuple((array.shape, array.dtype.name) for array in bundle)
    digest = _digest(edge, partition, microbatch, tensors, (bytes_of(array) for array in bundle))
    return Activation(edge, partition, microbatch, tensors, digest, chunk)


def check_reference(
    activation: Activation, edge: Edge, partition: int, microbatch: int, tensors: tuple[TensorSpec, ...]
) -> None:
    """Refuse a reference that belongs elsewhere.

    Raises
    ------
    SnapshotSkew
        It was computed on another snapshot.
    CorruptActivation
        Anything else of it differs.

    Examples
    --------
    >>> hidden = (TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (4, 0, 0, 0))),)
    >>> edge = Edge(job="j1", snapshot="0" * 64, name="0-1")
    >>> found = refer(edge, 3, 0, (np.zeros((2, 4), np.float32),), None)
    >>> check_reference(found, edge, 3, 0, hidden)
    >>> check_reference(found, edge, 4, 0, hidden)
    Traceback (most recent call last):
        ...
    daskinfer.errors.CorruptActivation: activation of edge 0-1, ...: its partition is 3 where 4 was expected
    """
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
    }
    for what, (is_, should_be) in wanted.items():
        if is_ != should_be:
            raise corrupt(activation, f"its {what} is {is_!r} where {should_be!r} was expected")
    if not _match(activation.tensors, tensors):
        raise corrupt(activation, f"it carries {_tell(activation.tensors)} where {_tell_wanted(tensors)} was expected")


def take(activation: Activation, pieces: Iterable[Array]) -> Bundle:
    """Return aligned copies of the tensors whose bytes these are, once their digest is right.

    Raises
    ------
    CorruptActivation
        The digest differs.

    Examples
    --------
    >>> edge = Edge(job="j1", snapshot="0" * 64, name="0-1")
    >>> bundle = (np.float32([[1, 2], [3, 4]]),)
    >>> take(refer(edge, 3, 0, bundle, None), [bytes_of(array) for array in bundle])
    (array([[1., 2.],
           [3., 4.]], dtype=float32),)
    """
    # The copies are what gets used, so the copies are what gets checked.
    copies = [_copy_aligned(piece) for piece in pieces]
    found = _digest(activation.edge, activation.partition, activation.microbatch, activation.tensors, copies)
    if found != activation.digest:
        raise corrupt(activation, f"its digest is {found} instead of {activation.digest}")
    return tuple(
        copy.view(DTYPES[dtype]).reshape(shape) for copy, (shape, dtype) in zip(copies, activation.tensors, strict=True)
    )


def pack(bundle: Bundle, nbytes: int) -> Array:
    """Return `nbytes` bytes that begin with the tensors end to end, aligned; zeros between and after them.

    Raises
    ------
    ValueError
        They do not fit.

    Examples
    --------
    >>> frame = pack((np.uint8([1, 2]), np.uint8([3])), 128)
    >>> frame.size, frame.nonzero()[0]
    (128, array([ 0,  1, 64]))
    """
    frame = np.zeros(nbytes, np.uint8)
    for offset, array in zip(bundle_offsets(array.nbytes for array in bundle), bundle, strict=False):
        end = offset + array.nbytes
        if end > nbytes:
            raise ValueError(f"{_tell((array.shape, array.dtype.name) for array in bundle)} exceeds {nbytes} bytes")
        frame[offset:end] = bytes_of(array)
    return frame


def unpack(activation: Activation, frame: Array) -> list[Array]:
    """Return the bytes of each tensor in what `pack` returned.

    Raises
    ------
    CorruptActivation
        The frame is too small for them.

    Examples
    --------
    >>> bundle = (np.uint8([1, 2]), np.uint8([3]))
    >>> activation = refer(Edge(job="j1", snapshot="0" * 64, name="0-1"), 3, 0, bundle, chunk=7)
    >>> unpack(activation, pack(bundle, 128))
    [array([1, 2], dtype=uint8), array([3], dtype=uint8)]
    """
    sizes = [prod(shape) * ITEM_BYTES[dtype] for shape, dtype in activation.tensors]
    offsets = bundle_offsets(sizes)
    if offsets[-2] + sizes[-1] > frame.size:
        raise corrupt(
            activation, f"it carries {_tell(activation.tensors)}, more than the {frame.size} bytes of a chunk"
        )
    return [frame[offset : offset + size] for offset, size in zip(offsets, sizes, strict=False)]


def bytes_of(array: Array) -> Array:
    """Return an array in C order as bytes.

    Examples
    --------
    >>> bytes_of(np.float32([[1, 2]]))
    array([  0,   0, 128,  63,   0,   0,   0,  64], dtype=uint8)
    """
    return array.reshape(-1).view(np.uint8)


def corrupt(activation: Activation, what: str) -> CorruptActivation:
    """Return the error that says which activation is wrong in what way.

    Examples
    --------
    >>> activation = Activation(Edge(job="j1", snapshot="0" * 64, name="0-1"), 3, 0, (), "0" * 32, chunk=7)
    >>> print(corrupt(activation, "it is gone").message)
    activation of edge 0-1, partition 3, microbatch 0, chunk 7: it is gone
    """
    return CorruptActivation(f"{_describe(activation)}: {what}")


def _match(found: tuple[tuple[tuple[int, ...], str], ...], tensors: tuple[TensorSpec, ...]) -> bool:
    return len(found) == len(tensors) and all(
        dtype == tensor.dtype
        and len(shape) == len(tensor.dims)
        and all(size > 0 if any(dim[1:]) else size == dim[0] for size, dim in zip(shape, tensor.dims, strict=True))
        for (shape, dtype), tensor in zip(found, tensors, strict=True)
    )


def _digest(
    edge: Edge,
    partition: int,
    microbatch: int,
    tensors: tuple[tuple[tuple[int, ...], str], ...],
    contents: Iterable[Array],
) -> str:
    identity = [edge.job, edge.snapshot, edge.name, partition, microbatch, tensors]
    hasher = xxhash.xxh3_128(canonical_json(identity))
    for content in contents:
        hasher.update(content.data)
    return hasher.hexdigest()


def _copy_aligned(piece: Array) -> Array:
    room = np.empty(piece.size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + piece.size]
    copy[:] = piece
    return copy


def _describe(activation: Activation) -> str:
    place = "" if activation.chunk is None else f", chunk {activation.chunk}"
    return (
        f"activation of edge {activation.edge.name}, partition {activation.partition}, "
        f"microbatch {activation.microbatch}{place}"
    )


def _tell(tensors: Iterable[tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for shape, dtype in tensors) or "nothing"


def _tell_wanted(tensors: tuple[TensorSpec, ...]) -> str:
    sizes = ([dim[0] if not any(dim[1:]) else "any" for dim in tensor.dims] for tensor in tensors)
    return ", ".join(
        f"{tensor.dtype} [{', '.join(map(str, shape))}]" for tensor, shape in zip(tensors, sizes, strict=True)
    )
