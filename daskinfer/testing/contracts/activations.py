"""The contract of an activation transport, as a pytest suite to run on any implementation.

::

    class TestMyTransport(TransportContract):
        def make_transport(self, root, edge, tensors):
            return MyTransport(root, edge, tensors, ...)
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer.errors import CorruptActivation, DaskinferError, SnapshotSkew
from daskinfer.spec.activation import Edge
from daskinfer.spec.outline import ALIGNMENT, ITEM_BYTES, Dim, TensorSpec
from daskinfer.storage.activations.framing import DTYPES, Array, Bundle
from daskinfer.storage.activations.transports import Transport

CAPACITY = 48
"""Most padded tokens of a microbatch."""
MAX_LENGTH = 16
"""Longest length in tokens."""
HIDDEN = 20
"""Width of the activations."""
CHUNKS = 8
"""Slots."""
EDGE = Edge(job="news-0123456789", snapshot="sha256:" + "ab" * 32, name="0-1")
"""The edge under test."""

ROWS: Dim = (0, 1, 0, 0)
LENGTH: Dim = (0, 0, 1, 0)


def fixed(size: int) -> Dim:
    """Return a dimension that is the same in every microbatch.

    Examples
    --------
    >>> TensorSpec(dtype="float32", dims=(ROWS, fixed(384))).shape(rows=2, length=9)
    (2, 384)
    """
    return (size, 0, 0, 0)


def hidden_state(dtype: str = "float32") -> tuple[TensorSpec, ...]:
    """Return what crosses most edges: one tensor (rows, length, HIDDEN).

    Examples
    --------
    >>> hidden_state("bfloat16")[0].nbytes(rows=2, length=3) == 2 * 3 * HIDDEN * 2
    True
    """
    return (TensorSpec(dtype=dtype, dims=(ROWS, LENGTH, fixed(HIDDEN))),)


BUNDLE = (
    *hidden_state(),
    TensorSpec(dtype="bfloat16", dims=(fixed(1), fixed(3), LENGTH, LENGTH)),
    TensorSpec(dtype="float16", dims=(ROWS, fixed(5), fixed(2), fixed(2))),
    TensorSpec(dtype="bool", dims=(ROWS, LENGTH)),
    TensorSpec(dtype="int64", dims=((0, 0, 0, 1),)),
    TensorSpec(dtype="float64", dims=()),
)
"""Tensors of every rank and kind: with a bias for each pair of tokens, a skip, a mask, positions, a scalar."""


def random_bundle(tensors: tuple[TensorSpec, ...], rows: int, length: int, seed: int = 0) -> Bundle:
    """Return arrays of random bits: every NaN payload, infinity and subnormal may occur.

    Examples
    --------
    >>> [array.dtype.name for array in random_bundle(BUNDLE, rows=2, length=3)]
    ['float32', 'bfloat16', 'float16', 'bool', 'int64', 'float64']
    """
    generator = np.random.default_rng(seed)
    return tuple(_random_array(generator, tensor.dtype, tensor.shape(rows, length)) for tensor in tensors)


def random_value(rows: int, length: int, dtype: str = "float32", seed: int = 0) -> Bundle:
    """Return such a bundle of one (rows, length, HIDDEN) array.

    Examples
    --------
    >>> one, other = random_value(2, 3, seed=1), random_value(2, 3, seed=2)
    >>> one[0].shape == (2, 3, HIDDEN), same(one, random_value(2, 3, seed=1)), same(one, other)
    (True, True, False)
    """
    return random_bundle(hidden_state(dtype), rows, length, seed)


def bits_of(array: Array) -> Array:
    """Return an array as bytes, to compare NaNs with.

    Examples
    --------
    >>> bits_of(np.float32([1.0]))
    array([  0,   0, 128,  63], dtype=uint8)
    """
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same(received: Bundle, value: Bundle) -> bool:
    """Whether two bundles are equal to the bit.

    Examples
    --------
    >>> nothing = (np.float32([np.nan]),)
    >>> same(nothing, nothing), same(nothing, (np.float64([np.nan]),))
    (True, False)
    """
    return [(array.shape, array.dtype) for array in received] == [
        (array.shape, array.dtype) for array in value
    ] and all(np.array_equal(bits_of(one), bits_of(other)) for one, other in zip(received, value, strict=True))


def _random_array(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    bits = generator.integers(0, 256, (*shape, ITEM_BYTES[dtype]), np.uint8)
    return bits.view(DTYPES[dtype]).reshape(shape)


class TransportContract:
    """What every transport promises.

    Examples
    --------
    >>> from daskinfer.storage.activations.transports import DirectTransport
    >>> class TestDirect(TransportContract):
    ...     def make_transport(self, root, edge, tensors):
    ...         return DirectTransport(edge, tensors)
    """

    def make_transport(self, root: str, edge: Edge, tensors: tuple[TensorSpec, ...]) -> Transport[Any]:
        """Return the transport under test, for CHUNKS slots of CAPACITY tokens in rows of at most MAX_LENGTH."""
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """Return a URL of this test's own; override it to run on another store."""
        return str(tmp_path / "edge")

    @pytest.fixture
    def transport(self, root: str) -> Transport[Any]:
        """Return a created transport of float32 hidden states over EDGE."""
        transport = self.make_transport(root, EDGE, hidden_state())
        transport.create()
        return transport

    @pytest.mark.parametrize(
        "tensors",
        [hidden_state("float32"), hidden_state("float16"), hidden_state("bfloat16"), hidden_state("int64"), BUNDLE],
        ids=["float32", "float16", "bfloat16", "int64", "bundle"],
    )
    def test_every_bit_arrives(self, root: str, tensors: tuple[TensorSpec, ...]) -> None:
        """NaN payloads, infinities and subnormals included, in microbatches of any shape."""
        transport = self.make_transport(root, EDGE, tensors)
        transport.create()
        for number, (rows, length) in enumerate([(1, 1), (3, MAX_LENGTH), (CAPACITY, 1), (5, 9)]):
            value = random_bundle(tensors, rows, length, seed=number)
            assert same(transport.receive(transport.send(7, number, number, value), 7, number), value)

    @pytest.mark.parametrize("tensors", [hidden_state(), BUNDLE], ids=["hidden state", "bundle"])
    def test_received_arrays_are_fresh_and_aligned(self, root: str, tensors: tuple[TensorSpec, ...]) -> None:
        """A receiver may write into its copies, and their alignment is always the same."""
        transport = self.make_transport(root, EDGE, tensors)
        transport.create()
        value = random_bundle(tensors, 3, 7)
        sent = transport.send(0, 0, 0, value)
        for array in transport.receive(sent, 0, 0):
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.ctypes.data % ALIGNMENT == 0
            array[...] = 0
        assert same(transport.receive(sent, 0, 0), value)

    def test_views(self, root: str) -> None:
        """Arrays that are not contiguous, or repeat one value without storing it twice, arrive as what they show."""
        transport = self.make_transport(root, EDGE, BUNDLE)
        transport.create()
        hidden, bias, skip, mask, positions, scalar = random_bundle(BUNDLE, 8, 6)
        value = (
            hidden[::2],
            np.broadcast_to(bias[:, :1, :1], bias.shape),
            np.asfortranarray(skip[:4]),
            np.broadcast_to(mask[:1], (4, 6)),
            positions[:24][::-1],
            np.broadcast_to(scalar, ()),
        )
        assert same(transport.receive(transport.send(0, 0, 0, value), 0, 0), value)

    @pytest.mark.parametrize("tensors", [hidden_state(), BUNDLE], ids=["hidden state", "bundle"])
    def test_crosses_processes(self, root: str, tensors: tuple[TensorSpec, ...]) -> None:
        """Transports and what they send travel as pickles."""
        transport = self.make_transport(root, EDGE, tensors)
        transport.create()
        value = random_bundle(tensors, 2, 5)
        sent = pickle.loads(pickle.dumps(transport.send(1, 2, 3, value)))
        other = pickle.loads(pickle.dumps(transport))
        assert same(other.receive(sent, 1, 2), value)

    def test_foreign_snapshot_is_skew(self, root: str, transport: Transport[Any]) -> None:
        """A value of another snapshot is never used."""
        sent = transport.send(0, 0, 0, random_value(2, 5))
        other = self.make_transport(root, replace(EDGE, snapshot="sha256:" + "cd" * 32), hidden_state())
        with pytest.raises(SnapshotSkew, match=r"edge 0-1, partition 0, microbatch 0.*abababababab.*cdcdcdcdcdcd"):
            other.receive(sent, 0, 0)

    @pytest.mark.parametrize(
        ("edge", "partition", "microbatch", "told"),
        [
            (replace(EDGE, job="other"), 4, 5, "job is 'news-0123456789' where 'other' was expected"),
            (replace(EDGE, name="1-2"), 4, 5, "edge is '0-1' where '1-2' was expected"),
            (EDGE, 3, 5, "partition is 4 where 3 was expected"),
            (EDGE, 4, 6, "microbatch is 5 where 6 was expected"),
        ],
    )
    def test_misrouted_value_is_corrupt(
        self, root: str, transport: Transport[Any], edge: Edge, partition: int, microbatch: int, told: str
    ) -> None:
        """A value that belongs elsewhere is never used, and the error says what differed and travels."""
        sent = transport.send(4, 5, 1, random_value(2, 5))
        with pytest.raises(CorruptActivation) as caught:
            self.make_transport(root, edge, hidden_state()).receive(sent, partition, microbatch)
        assert told in str(caught.value)
        again: DaskinferError = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)

    @pytest.mark.parametrize(
        "value",
        [
            (random_value(2, 5)[0][0],),
            (random_value(2, 5)[0][..., 1:],),
            random_value(0, 5),
            random_value(2, 5, "float16"),
            (random_value(2, 5)[0].astype(">f4"),),
            random_value(2, 5) * 2,
            (),
        ],
        ids=["2 dimensions", "width", "empty", "dtype", "byte order", "one too many", "none"],
    )
    def test_refuses_what_is_no_activation(self, transport: Transport[Any], value: Bundle) -> None:
        """A sender's mistake shows at the sender."""
        with pytest.raises(ValueError, match=rf"is not what the edge carries: float32 \[any, any, {HIDDEN}\]"):
            transport.send(0, 0, 0, value)

    def test_other_tensors_are_corrupt(self, root: str) -> None:
        """A bundle of another make is never used."""
        transport = self.make_transport(root, EDGE, BUNDLE)
        transport.create()
        sent = transport.send(0, 0, 0, random_bundle(BUNDLE, 2, 5))
        with pytest.raises(CorruptActivation, match=r"it carries float32.*was expected"):
            self.make_transport(root, EDGE, BUNDLE[:-1]).receive(sent, 0, 0)

    def test_slots_are_reused(self, transport: Transport[Any]) -> None:
        """A slot serves one microbatch after another, with or without a delete between."""
        for number in range(4):
            value = random_value(2, 5 + number, seed=number)
            assert same(transport.receive(transport.send(0, number, 2, value), 0, number), value)
            if number % 2:
                transport.delete([2])

    def test_threads_share_a_transport(self, transport: Transport[Any]) -> None:
        """Tasks of one worker send and receive at the same time."""

        def travel(number: int) -> bool:
            value = random_value(4, 12, seed=number)
            return same(transport.receive(transport.send(0, number, number, value), 0, number), value)

        with ThreadPoolExecutor(CHUNKS) as pool:
            assert all(pool.map(travel, range(CHUNKS)))

    def test_housekeeping_can_be_repeated(self, transport: Transport[Any]) -> None:
        """create, delete and drop do no harm a second time, and create keeps what was sent."""
        value = random_value(2, 5)
        sent = transport.send(0, 0, 0, value)
        transport.create()
        assert same(transport.receive(sent, 0, 0), value)
        transport.delete([0, 1])
        transport.delete([0])
        transport.drop()
        transport.drop()
        transport.create()
        assert same(transport.receive(transport.send(0, 0, 0, value), 0, 0), value)
