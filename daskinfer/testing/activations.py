"""The contract of an activation transport, as a pytest suite to run on any implementation.

::

    class TestMyTransport(TransportContract):
        def make_transport(self, root, edge, dtype):
            return MyTransport(root, edge, ...)
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from daskinfer.errors import CorruptActivation, DaskinferError, SnapshotSkew
from daskinfer.spec.activation import Edge
from daskinfer.storage.activations import ALIGNMENT, Array, Transport

CAPACITY = 48
"""Tokens that a transport under test must take at once."""
HIDDEN = 20
"""Width of the activations."""
CHUNKS = 8
"""Slots."""
EDGE = Edge(job="news-0123456789", snapshot="sha256:" + "ab" * 32, name="0-1")
"""The edge under test."""

_NATIVE: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_BITS: dict[str, Any] = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def random_value(rows: int, tokens: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Return (rows, tokens, HIDDEN) of random bits: every NaN payload, infinity and subnormal may occur."""
    bits = np.random.default_rng(seed).integers(0, np.iinfo(_BITS[dtype]).max, (rows, tokens, HIDDEN), _BITS[dtype])
    value: Array = bits.view(_NATIVE[dtype])
    return value


def bits_of(value: Array) -> Array:
    """Return the value as bytes, to compare NaNs with."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


class TransportContract:
    """What every transport promises."""

    def make_transport(self, root: str, edge: Edge, dtype: str) -> Transport[Any]:
        """Return the transport under test, for CHUNKS slots of CAPACITY tokens, HIDDEN wide."""
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """Return a URL of this test's own; override it to run on another store."""
        return str(tmp_path / "edge")

    @pytest.fixture
    def transport(self, root: str) -> Transport[Any]:
        """Return a created float32 transport of EDGE."""
        transport = self.make_transport(root, EDGE, "float32")
        transport.create()
        return transport

    @pytest.mark.parametrize("dtype", sorted(_NATIVE))
    def test_every_bit_arrives(self, root: str, dtype: str) -> None:
        """NaN payloads, infinities and subnormals included."""
        transport = self.make_transport(root, EDGE, dtype)
        transport.create()
        for number, (rows, tokens) in enumerate([(1, 1), (3, 16), (CAPACITY, 1), (5, 9)]):
            value = random_value(rows, tokens, dtype, seed=number)
            received = transport.receive(transport.send(7, number, number, value), 7, number)
            assert received.dtype == value.dtype
            assert received.shape == value.shape
            assert np.array_equal(bits_of(received), bits_of(value))

    def test_received_value_is_fresh_and_aligned(self, transport: Transport[Any]) -> None:
        """A receiver may write into its copy, and its alignment is always the same."""
        value = random_value(3, 16)
        sent = transport.send(0, 0, 0, value)
        first = transport.receive(sent, 0, 0)
        assert first.flags.c_contiguous
        assert first.flags.writeable
        assert first.ctypes.data % ALIGNMENT == 0
        first[:] = 0
        assert np.array_equal(bits_of(transport.receive(sent, 0, 0)), bits_of(value))

    def test_strided_value(self, transport: Transport[Any]) -> None:
        """A view that is not contiguous arrives as what it shows."""
        value = random_value(8, 6)[::2]
        assert np.array_equal(bits_of(transport.receive(transport.send(0, 0, 0, value), 0, 0)), bits_of(value))

    def test_crosses_processes(self, transport: Transport[Any]) -> None:
        """Transports and what they send travel as pickles."""
        value = random_value(2, 5)
        sent = pickle.loads(pickle.dumps(transport.send(1, 2, 3, value)))
        other = pickle.loads(pickle.dumps(transport))
        assert np.array_equal(bits_of(other.receive(sent, 1, 2)), bits_of(value))

    def test_foreign_snapshot_is_skew(self, root: str, transport: Transport[Any]) -> None:
        """A value of another snapshot is never used."""
        sent = transport.send(0, 0, 0, random_value(2, 5))
        other = self.make_transport(root, replace(EDGE, snapshot="sha256:" + "cd" * 32), "float32")
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
            self.make_transport(root, edge, "float32").receive(sent, partition, microbatch)
        assert told in str(caught.value)
        again: DaskinferError = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)

    @pytest.mark.parametrize(
        "value",
        [random_value(2, 5)[0], random_value(2, 5)[..., 1:], random_value(0, 5), random_value(2, 5, "float16")],
        ids=["2 dimensions", "width", "empty", "dtype"],
    )
    def test_refuses_what_is_no_activation(self, transport: Transport[Any], value: Array) -> None:
        """A sender's mistake shows at the sender."""
        with pytest.raises(ValueError, match="is not"):
            transport.send(0, 0, 0, value)

    def test_slots_are_reused(self, transport: Transport[Any]) -> None:
        """A slot serves one microbatch after another, with or without a delete between."""
        for number in range(4):
            value = random_value(2, 5 + number, seed=number)
            received = transport.receive(transport.send(0, number, 2, value), 0, number)
            assert np.array_equal(bits_of(received), bits_of(value))
            if number % 2:
                transport.delete([2])

    def test_threads_share_a_transport(self, transport: Transport[Any]) -> None:
        """Tasks of one worker send and receive at the same time."""

        def travel(number: int) -> bool:
            value = random_value(4, 12, seed=number)
            received = transport.receive(transport.send(0, number, number, value), 0, number)
            return np.array_equal(bits_of(received), bits_of(value))

        with ThreadPoolExecutor(CHUNKS) as pool:
            assert all(pool.map(travel, range(CHUNKS)))

    def test_housekeeping_can_be_repeated(self, transport: Transport[Any]) -> None:
        """create, delete and drop do no harm a second time, and create keeps what was sent."""
        value = random_value(2, 5)
        sent = transport.send(0, 0, 0, value)
        transport.create()
        assert np.array_equal(bits_of(transport.receive(sent, 0, 0)), bits_of(value))
        transport.delete([0, 1])
        transport.delete([0])
        transport.drop()
        transport.drop()
        transport.create()
        assert np.array_equal(bits_of(transport.receive(transport.send(0, 0, 0, value), 0, 0)), bits_of(value))
