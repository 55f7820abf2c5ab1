from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from dask.sizeof import sizeof

from daskinfer.errors import CorruptActivation, StorageError
from daskinfer.ids import make_nonce
from daskinfer.spec.activation import Activation, Edge
from daskinfer.spec.outline import TensorSpec, largest_bundle
from daskinfer.storage.activations.transports import DirectActivation, DirectTransport, Transport, ZarrTransport
from daskinfer.storage.objects.filesystem import exists, list_names
from daskinfer.testing.contracts.activations import (
    BUNDLE,
    CAPACITY,
    CHUNKS,
    EDGE,
    HIDDEN,
    MAX_LENGTH,
    TransportContract,
    bits_of,
    hidden_state,
    random_bundle,
    random_value,
    same,
)

CHUNK_BYTES = CAPACITY * HIDDEN * 4
SHAPE = (3, 16, HIDDEN)


def zarr_transport(root: str, edge: Edge = EDGE, tensors: tuple[TensorSpec, ...] = hidden_state()) -> ZarrTransport:
    return ZarrTransport(root, edge, tensors, capacity=CAPACITY, max_length=MAX_LENGTH, chunks=CHUNKS)


class TestZarrTransport(TransportContract):
    def make_transport(self, root: str, edge: Edge, tensors: tuple[TensorSpec, ...]) -> Transport[Any]:
        return zarr_transport(root, edge, tensors)


class TestZarrTransportInMemory(TestZarrTransport):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"memory://activations-{make_nonce()}/0-1"


@pytest.mark.s3
class TestZarrTransportOnS3(TestZarrTransport):
    @pytest.fixture
    def root(self, tmp_path: Path, s3_url: str) -> str:
        return f"{s3_url}/activations-{make_nonce()}/0-1"

    def test_missing_chunk(self, transport: ZarrTransport) -> None:
        sent = transport.send(0, 0, 5, random_value(3, 16))
        assert list_names(transport.url) == ["c", "zarr.json"]
        transport.delete([5])
        with pytest.raises(CorruptActivation, match="its chunk is missing from s3://"):
            transport.receive(sent, 0, 0)
        transport.drop()
        assert not exists(transport.url)


class TestDirectTransport(TransportContract):
    def make_transport(self, root: str, edge: Edge, tensors: tuple[TensorSpec, ...]) -> Transport[Any]:
        return DirectTransport(edge, tensors)


@pytest.fixture
def transport(tmp_path: Path) -> ZarrTransport:
    transport = zarr_transport(str(tmp_path / "edge"))
    transport.create()
    return transport


def chunk_file(transport: ZarrTransport, chunk: int) -> Path:
    return Path(transport.url, "c", str(chunk), "0")


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, 3 * 16 * HIDDEN * 4 - 1)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, CHUNK_BYTES - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(CHUNK_BYTES))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_first, "its digest is"),
        (flip_last, "its digest is"),
        (zero, "its digest is"),
        (truncate, f"its chunk has {CHUNK_BYTES - 1} bytes instead of {CHUNK_BYTES}"),
        (empty, f"its chunk has 0 bytes instead of {CHUNK_BYTES}"),
        (Path.unlink, "its chunk is missing from"),
    ],
)
def test_damaged_chunk(transport: ZarrTransport, damage: Callable[[Path], None], told: str) -> None:
    value = random_value(3, 16)
    sent = transport.send(11, 22, 5, value)
    transport.receive(sent, 11, 22)
    damage(chunk_file(transport, 5))
    with pytest.raises(CorruptActivation) as caught:
        transport.receive(sent, 11, 22)
    assert "edge 0-1, partition 11, microbatch 22, chunk 5" in str(caught.value)
    assert told in str(caught.value)
    assert same(transport.receive(transport.send(11, 22, 5, value), 11, 22), value)


def test_swapped_chunks_of_equal_size(transport: ZarrTransport, tmp_path: Path) -> None:
    first = transport.send(0, 0, 0, random_value(3, 16, seed=1))
    second = transport.send(0, 1, 1, random_value(3, 16, seed=2))
    chunk_file(transport, 0).rename(tmp_path / "aside")
    chunk_file(transport, 1).rename(chunk_file(transport, 0))
    (tmp_path / "aside").rename(chunk_file(transport, 1))
    for sent, microbatch in [(first, 0), (second, 1)]:
        with pytest.raises(CorruptActivation, match="digest"):
            transport.receive(sent, 0, microbatch)


@pytest.mark.parametrize(
    "other",
    [replace(EDGE, job="older"), replace(EDGE, snapshot="sha256:" + "cd" * 32), replace(EDGE, name="1-2")],
    ids=["job", "snapshot", "edge"],
)
def test_digest_binds_bytes_to_their_identity(transport: ZarrTransport, tmp_path: Path, other: Edge) -> None:
    """Equal bytes under a reference of another identity are not the same activation."""
    foreign = zarr_transport(str(tmp_path / "foreign"), other)
    foreign.create()
    value = random_value(3, 16)
    sent, strange = transport.send(0, 0, 0, value), foreign.send(0, 0, 0, value)
    assert sent.digest != strange.digest
    shutil.copy(chunk_file(foreign, 0), chunk_file(transport, 0))
    with pytest.raises(CorruptActivation, match="digest"):
        transport.receive(replace(strange, edge=EDGE), 0, 0)
    assert same(transport.receive(sent, 0, 0), value)


def test_chunk_of_another_snapshot_put_in_place(transport: ZarrTransport, tmp_path: Path) -> None:
    foreign = zarr_transport(str(tmp_path / "foreign"), replace(EDGE, snapshot="sha256:" + "cd" * 32))
    foreign.create()
    foreign.send(0, 0, 0, random_value(3, 16, seed=2))
    sent = transport.send(0, 0, 0, random_value(3, 16, seed=1))
    shutil.copy(chunk_file(foreign, 0), chunk_file(transport, 0))
    with pytest.raises(CorruptActivation, match="digest"):
        transport.receive(sent, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": (((16, 3, HIDDEN), "float32"),)},
        {"tensors": (((3, 15, HIDDEN), "float32"),)},
        {"tensors": (((3, 16, HIDDEN + 1), "float32"),)},
        {"tensors": (((3, 16), "float32"),)},
        {"tensors": (((0, 16, HIDDEN), "float32"),)},
        {"tensors": (((49, 1, HIDDEN), "float32"),)},
        {"tensors": ((SHAPE, "float16"),)},
        {"tensors": ()},
        {"tensors": ((SHAPE, "float32"), (SHAPE, "float32"))},
        {"chunk": None},
        {"chunk": CHUNKS},
        {"chunk": -1},
        {"digest": "0" * 32},
    ],
    ids=str,
)
def test_forged_reference(transport: ZarrTransport, change: dict[str, Any]) -> None:
    sent = transport.send(0, 0, 0, random_value(3, 16))
    with pytest.raises(CorruptActivation, match="edge 0-1, partition 0, microbatch 0"):
        transport.receive(replace(sent, **change), 0, 0)


def test_direct_value_that_does_not_match() -> None:
    transport = DirectTransport(EDGE, hidden_state())
    sent = transport.send(0, 0, 0, random_value(3, 16))
    (value,) = sent.value
    damaged = value.copy()
    damaged.view(np.uint32)[0, 0, 0] ^= 1
    for forged in ((damaged,), (value[:2],), (value.view(np.int32),), (), (value, value)):
        with pytest.raises(CorruptActivation):
            transport.receive(DirectActivation(sent.activation, forged), 0, 0)


def test_dask_sees_the_memory_of_a_direct_activation() -> None:
    value = random_bundle(BUNDLE, 3, 16)
    sent = DirectTransport(EDGE, BUNDLE).send(0, 0, 0, value)
    assert sent.nbytes == sum(array.nbytes for array in value)
    assert sizeof(sent) >= sent.nbytes


def test_direct_value_travels_outside_the_pickle() -> None:
    transport = DirectTransport(EDGE, BUNDLE)
    value = random_bundle(BUNDLE, 3, 16)
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(transport.send(0, 0, 0, value), protocol=5, buffer_callback=buffers.append)
    assert [buffer.raw().nbytes for buffer in buffers] == [array.nbytes for array in value]
    arrived = pickle.loads(head, buffers=[bytes(buffer) for buffer in buffers])
    assert same(transport.receive(arrived, 0, 0), value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_anything_that_reads_zarr_reads_it(tmp_path: Path, dtype: str) -> None:
    transport = zarr_transport(str(tmp_path / "edge"), tensors=hidden_state(dtype))
    transport.create()
    values = {chunk: random_value(3, 9 + chunk, dtype, seed=chunk) for chunk in (0, 3, CHUNKS - 1)}
    for chunk, bundle in values.items():
        transport.send(0, chunk, chunk, bundle)
    array = zarr.open_array(transport.url, mode="r")
    assert array.shape == (CHUNKS * CAPACITY, HIDDEN)
    assert array.attrs.asdict() == {"job": EDGE.job, "snapshot": EDGE.snapshot, "edge": "0-1"}
    for chunk, (value,) in values.items():
        stored = np.asarray(array[chunk * CAPACITY : (chunk + 1) * CAPACITY])
        assert stored.dtype == value.dtype
        tokens = value.shape[0] * value.shape[1]
        assert np.array_equal(bits_of(stored[:tokens]), bits_of(value))
        assert not bits_of(stored[tokens:]).any()


def test_any_other_bundle_is_stored_as_bytes(tmp_path: Path) -> None:
    transport = zarr_transport(str(tmp_path / "edge"), tensors=BUNDLE)
    transport.create()
    value = random_bundle(BUNDLE, 5, 9)
    transport.send(0, 0, 2, value)
    array = zarr.open_array(transport.url, mode="r")
    assert array.shape == (CHUNKS, largest_bundle(BUNDLE, CAPACITY, MAX_LENGTH))
    assert array.dtype == np.uint8
    stored = np.asarray(array[2])
    position = 0
    for tensor in value:
        assert np.array_equal(stored[position : position + tensor.nbytes], bits_of(tensor))
        position += -(-tensor.nbytes // 64) * 64
    assert not stored[position:].any()
    assert not np.asarray(array[[0, 1, 3]]).any()


@pytest.mark.parametrize("number", range(len(BUNDLE)))
def test_damage_to_any_tensor_of_a_bundle(tmp_path: Path, number: int) -> None:
    transport = zarr_transport(str(tmp_path / "edge"), tensors=BUNDLE)
    transport.create()
    value = random_bundle(BUNDLE, 5, 9)
    sent = transport.send(0, 0, 2, value)
    flip(chunk_file(transport, 2), sum(-(-tensor.nbytes // 64) * 64 for tensor in value[:number]))
    with pytest.raises(CorruptActivation, match="its digest is"):
        transport.receive(sent, 0, 0)


def test_edge_that_carries_something_else_now_starts_over(transport: ZarrTransport) -> None:
    sent = transport.send(0, 0, 5, random_value(3, 16))
    other = replace(transport, tensors=BUNDLE)
    other.create()
    with pytest.raises(CorruptActivation, match="it carries"):
        other.receive(sent, 0, 0)
    value = random_bundle(BUNDLE, 3, 16)
    assert same(other.receive(other.send(0, 0, 5, value), 0, 0), value)


def test_reads_what_zarr_wrote(transport: ZarrTransport) -> None:
    value = random_value(3, 16)
    sent = transport.send(0, 0, 0, value)
    transport.delete([0])
    array = zarr.open_array(transport.url, mode="r+", config={"write_empty_chunks": True})
    array[:CAPACITY] = value[0].reshape(-1, HIDDEN)
    assert same(transport.receive(sent, 0, 0), value)


@pytest.mark.parametrize(
    ("tensors", "size"), [(hidden_state(), CHUNK_BYTES), (BUNDLE, largest_bundle(BUNDLE, CAPACITY, MAX_LENGTH))]
)
def test_value_that_exceeds_a_chunk(tmp_path: Path, tensors: tuple[TensorSpec, ...], size: int) -> None:
    transport = zarr_transport(str(tmp_path / "edge"), tensors=tensors)
    transport.create()
    with pytest.raises(ValueError, match=f"exceeds {size} bytes"):
        transport.send(0, 0, 0, random_bundle(tensors, 7, 17))
    with pytest.raises(ValueError, match=f"no chunk {CHUNKS} among {CHUNKS}"):
        transport.send(0, 0, CHUNKS, random_bundle(tensors, 2, 2))


def test_resume_with_another_window_starts_over(transport: ZarrTransport) -> None:
    sent = transport.send(0, 0, 0, random_value(3, 16))
    wider = replace(transport, chunks=2 * CHUNKS)
    wider.create()
    with pytest.raises(CorruptActivation, match="missing"):
        wider.receive(sent, 0, 0)
    assert zarr.open_array(transport.url, mode="r").shape == (2 * CHUNKS * CAPACITY, HIDDEN)


def test_never_takes_over_what_belongs_to_another_job(transport: ZarrTransport) -> None:
    with pytest.raises(StorageError, match="is not the activation array of job other, edge 0-1"):
        replace(transport, edge=replace(EDGE, job="other")).create()


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot create"):
        zarr_transport(str(tmp_path / "file" / "edge")).create()


WRITER = """
import sys
import numpy as np
from daskinfer.spec.activation import Edge
from daskinfer.spec.outline import TensorSpec
from daskinfer.storage.activations.transports import ZarrTransport

tensors = (TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0), (384, 0, 0, 0))),)
transport = ZarrTransport(sys.argv[1], Edge("j", "s", "0-1"), tensors, capacity=2048, max_length=2048, chunks=2)
transport.create()
value = np.full((1, 2048, 384), 1, np.float32)
number = 0
while True:
    number += 1
    transport.send(0, number, 0, (value * number,))
    print(flush=True)
"""


def test_killed_writer_leaves_no_torn_chunk(tmp_path: Path) -> None:
    chunk = tmp_path / "edge" / "c" / "0" / "0"
    for attempt in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "edge")], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer:
            assert writer.stdout.readline() == b"\n"
            time.sleep(0.002 * attempt)
            writer.send_signal(signal.SIGKILL)
        stored = np.frombuffer(chunk.read_bytes(), np.float32)
        assert stored.size == 2048 * 384
        assert stored[0] >= 1
        assert (stored == stored[0]).all()


def test_reference_is_small_and_plain(transport: ZarrTransport) -> None:
    sent = transport.send(3, 4, 5, random_value(3, 16))
    assert sent == Activation(EDGE, 3, 4, ((SHAPE, "float32"),), sent.digest, 5)
    assert len(sent.digest) == 32
    assert transport.send(3, 4, 6, random_value(3, 16)).digest == sent.digest


def test_bfloat16_is_the_one_of_ml_dtypes(tmp_path: Path) -> None:
    transport = zarr_transport(str(tmp_path / "edge"), tensors=hidden_state("bfloat16"))
    transport.create()
    value = np.ones((1, 2, HIDDEN), ml_dtypes.bfloat16)
    (received,) = transport.receive(transport.send(0, 0, 0, (value,)), 0, 0)
    assert received.dtype == np.dtype(ml_dtypes.bfloat16)
    assert (received == 1).all()
