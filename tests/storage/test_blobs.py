from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from fsspec import filesystem
from safetensors.numpy import save

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.ids import make_nonce
from daskinfer.storage import blobs
from daskinfer.storage.blobs import read_group, read_header
from daskinfer.storage.filesystem import read_bytes, replace_bytes
from daskinfer.storage.urls import join_url
from daskinfer.testing.faultyfs import FaultyFS, cut_short
from daskinfer.testing.groups import as_reference, store_group

ARRAYS = {
    "layer.0.weight": np.arange(128, dtype=np.float32).reshape(16, 8),
    "layer.0.bias": np.ones(8, dtype=np.float32),
}


def test_a_reference_gives_its_tensors(any_store: str) -> None:
    group = as_reference(any_store, store_group(any_store, "layer.0", ARRAYS))
    data = read_group("nowhere", group)
    assert data == b"".join(ARRAYS[entry.name].tobytes() for entry in group.tensors)
    url = str(group.tensors[0].file)
    replace_bytes(url, read_bytes(url)[:-1] + b"?")
    with pytest.raises(CorruptBlob, match="is damaged") as changed:
        read_group("nowhere", group)
    assert "publish it again" in str(changed.value.hint)


@pytest.mark.parametrize("place", ["first", "header", "middle", "last"])
def test_one_flipped_bit_is_noticed(any_store: str, place: str) -> None:
    group = store_group(any_store, "layer.0", ARRAYS)
    url = join_url(any_store, str(group.blob))
    data = bytearray(read_group(any_store, group))
    data[{"first": 0, "header": 30, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    replace_bytes(url, bytes(data))
    with pytest.raises(CorruptBlob, match=r"layer group layer\.0 is damaged") as corrupt:
        read_group(any_store, group)
    assert url in corrupt.value.message and group.sha256 in corrupt.value.message
    assert corrupt.value.hint


@pytest.mark.parametrize("range_bytes", [100, 1 << 20])
def test_missing_and_short_blobs_are_noticed(any_store: str, range_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", range_bytes)
    group = store_group(any_store, "layer.0", ARRAYS)
    url = join_url(any_store, str(group.blob))
    data = read_group(any_store, group)
    for wrong in (data[:-1], data[:150]):
        replace_bytes(url, wrong)
        with pytest.raises(CorruptBlob, match=r"layer\.0"):
            read_group(any_store, group)
    replace_bytes(url, data)
    assert read_group(any_store, group) == data
    filesystem(url.partition("://")[0] if "://" in url else "file", use_listings_cache=False).rm_file(url)
    with pytest.raises(CorruptBlob, match="is gone"):
        read_group(any_store, group)


def test_a_short_read_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", 100)
    url = f"memory://{make_nonce()}"
    group = store_group(url, "layer.0", ARRAYS)
    with FaultyFS(url, "cat_file", cut_short, after=2) as faults, pytest.raises(CorruptBlob, match="short"):
        read_group(url, group)
    assert faults.hits == 1


def test_a_longer_blob_is_noticed(any_store: str) -> None:
    group = store_group(any_store, "layer.0", ARRAYS)
    url = join_url(any_store, str(group.blob))
    replace_bytes(url, read_group(any_store, group) + b"x")
    with pytest.raises(CorruptBlob, match=rf"has {group.size + 1} bytes"):
        read_group(any_store, group)


@pytest.mark.s3
def test_ranges_come_back_in_order(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_RANGE_BYTES", 64)
    url = join_url(s3_url, make_nonce())
    group = store_group(url, "layer.0", ARRAYS)
    assert read_group(url, group) == read_bytes(join_url(url, str(group.blob)))


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
        assert entry.blake3 == blake3(arrays[entry.name].tobytes()).hexdigest()


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
