from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from fsspec import filesystem
from safetensors.numpy import load, save

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.ids import make_nonce
from daskinfer.spec.snapshot import LayerGroup
from daskinfer.storage import blobs
from daskinfer.storage.blobs import read_group, read_header, tensors
from daskinfer.storage.filesystem import join_url, replace_bytes
from daskinfer.storage.publishing import publish
from daskinfer.storage.registry import Registry
from daskinfer.testing.checkpoints import make_checkpoint
from daskinfer.testing.faultyfs import FaultyFS, cut_short


def publish_group(url: str) -> tuple[Registry, LayerGroup]:
    registry = Registry(url)
    snapshot = publish(registry, "mini", make_checkpoint(), None).snapshot
    return registry, registry.manifest(snapshot).group("layer.0")


def test_tensors_are_the_ones_published(any_store: str) -> None:
    registry, group = publish_group(any_store)
    data = read_group(registry.url, group)
    expected = load(make_checkpoint().groups[1].blob())
    found = tensors(group, data)
    assert set(found) == {"layer.0.weight", "layer.0.bias"} == set(expected)
    for entry in group.tensors:
        assert entry.dtype == "F32"
        array = np.frombuffer(found[entry.name], dtype=np.float32).reshape(entry.shape)
        np.testing.assert_array_equal(array, expected[entry.name])


@pytest.mark.parametrize("place", ["first", "header", "middle", "last"])
def test_one_flipped_bit_is_noticed(any_store: str, place: str) -> None:
    registry, group = publish_group(any_store)
    url = join_url(registry.url, group.blob)
    data = bytearray(read_group(registry.url, group))
    data[{"first": 0, "header": 30, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    replace_bytes(url, bytes(data))
    with pytest.raises(CorruptBlob, match=r"layer group layer\.0 is damaged") as corrupt:
        read_group(registry.url, group)
    assert url in corrupt.value.message and group.sha256 in corrupt.value.message
    assert corrupt.value.hint


@pytest.mark.parametrize("range_bytes", [100, 1 << 20])
def test_missing_and_short_blobs_are_noticed(any_store: str, range_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", range_bytes)
    registry, group = publish_group(any_store)
    url = join_url(registry.url, group.blob)
    data = read_group(registry.url, group)
    for wrong in (data[:-1], data[:150]):
        replace_bytes(url, wrong)
        with pytest.raises(CorruptBlob, match=r"layer\.0"):
            read_group(registry.url, group)
    replace_bytes(url, data)
    assert read_group(registry.url, group) == data
    filesystem(url.partition("://")[0] if "://" in url else "file", use_listings_cache=False).rm_file(url)
    with pytest.raises(CorruptBlob, match="is gone"):
        read_group(registry.url, group)


def test_a_short_read_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", 100)
    registry, group = publish_group(f"memory://{make_nonce()}")
    with FaultyFS(registry.url, "cat_file", cut_short, after=2) as faults, pytest.raises(CorruptBlob, match="short"):
        read_group(registry.url, group)
    assert faults.hits == 1


def test_a_longer_blob_is_noticed(any_store: str) -> None:
    registry, group = publish_group(any_store)
    url = join_url(registry.url, group.blob)
    replace_bytes(url, read_group(registry.url, group) + b"x")
    with pytest.raises(CorruptBlob, match=rf"has {group.size + 1} bytes"):
        read_group(registry.url, group)


@pytest.mark.s3
def test_ranges_come_back_in_order(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", 64)
    registry, group = publish_group(join_url(s3_url, make_nonce()))
    assert read_group(registry.url, group) == make_checkpoint().groups[1].blob()


def test_headers_are_read_as_safetensors_wrote_them() -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "b": np.arange(6, dtype=np.int64).reshape(2, 3),
        "a": np.zeros((0, 4), dtype=np.float32),
        "c": np.ones(1, dtype=np.float16),
    }
    data = save(arrays, metadata={"format": "pt"})
    entries = read_header(data, "g")
    assert {entry.name for entry in entries} == {"a", "b", "c"}
    for entry in entries:
        assert data[entry.begin : entry.end] == arrays[entry.name].tobytes()
        assert entry.shape == arrays[entry.name].shape


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1]}}',
        b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
        b"\xff",
    ],
)
def test_wrong_headers_are_refused(header: bytes) -> None:
    with pytest.raises(CheckpointError, match="layer group g is not a"):
        read_header(struct.pack("<Q", len(header)) + header + bytes(4), "g")
