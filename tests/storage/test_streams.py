from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskinfer.errors import CorruptBlob
from daskinfer.ids import make_nonce
from daskinfer.knobs import ONE_PUT, UPLOAD_PART
from daskinfer.storage.objects.create_if_absent import create, create_stream
from daskinfer.storage.objects.filesystem import exists, list_names, open_filesystem, read_bytes
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.streams import PIECE, Stream, read_pieces
from daskinfer.storage.objects.urls import join_url
from daskinfer.testing.faults.faulty_filesystem import Fault, FaultyFS, break_connection, lose_acknowledgement

DATA = bytes(range(256)) * (48 * 1024)  # 12 MiB: two parts


def make_stream(data: bytes = DATA, told: bytes | None = None) -> Stream:
    digest = hashlib.sha256(data if told is None else told).hexdigest()
    return Stream(len(data if told is None else told), digest, lambda: iter([data[:PIECE], data[PIECE:]]))


@pytest.fixture(autouse=True)
def several_parts() -> Iterator[None]:
    with ONE_PUT.override(2**20), UPLOAD_PART.override(5 * 2**20):
        yield


def test_a_stream_becomes_an_object_once(any_store: str) -> None:
    url = join_url(any_store, "folder", "object")
    assert create_stream(url, make_stream())
    assert b"".join(read_pieces(url, 0, len(DATA))) == DATA
    assert b"".join(read_pieces(url, 5, 5000, 7)) == DATA[5:5000]
    assert create_stream(url, make_stream())
    assert not create_stream(url, make_stream(DATA[:-1] + b"!"))
    assert not create_stream(url, make_stream(DATA[:-1]))
    assert list_names(join_url(any_store, "folder")) == ["object"]
    with pytest.raises(ShortRead):
        list(read_pieces(url, 0, len(DATA) + 1))
    with pytest.raises(FileNotFoundError):
        list(read_pieces(f"{url}.none", 0, 10))


def test_wrong_bytes_are_never_seen(any_store: str) -> None:
    for told in (DATA[:-1] + b"!", DATA[:-1]):
        with pytest.raises(CorruptBlob, match="were expected"):
            create_stream(join_url(any_store, "object"), make_stream(told=told))
    assert list_names(any_store) == []


@pytest.mark.s3
def test_a_broken_stream_leaves_no_parts(s3_url: str) -> None:
    def break_off() -> Iterator[bytes]:
        yield DATA[:PIECE]
        raise KeyboardInterrupt

    url = join_url(s3_url, make_nonce())
    with pytest.raises(KeyboardInterrupt):
        create_stream(url, Stream(len(DATA), "0" * 64, break_off))
    assert not exists(url)
    filesystem, path = open_filesystem(url)
    assert "Uploads" not in filesystem.call_s3("list_multipart_uploads", Bucket=path.partition("/")[0])


@pytest.mark.s3
@pytest.mark.parametrize("fault", [lose_acknowledgement, break_connection])
def test_a_lost_acknowledgement_of_the_last_part_is_a_success(s3_url: str, fault: Fault) -> None:
    url = join_url(s3_url, make_nonce())
    with FaultyFS(url, "call_s3", fault, after=3) as faults:  # begin, two parts, complete
        assert create_stream(url, make_stream())
    assert faults.hits == 1
    assert read_bytes(url) == DATA


@pytest.mark.s3
def test_another_object_that_came_first_stays(s3_url: str) -> None:
    url = join_url(s3_url, make_nonce())

    def come_first() -> Iterator[bytes]:
        create(url, b"first")
        yield from make_stream().pieces()

    assert not create_stream(url, Stream(len(DATA), make_stream().sha256, come_first))
    assert read_bytes(url) == b"first"


def test_a_local_stream_is_whole_or_nothing(tmp_path: Path) -> None:
    url = tmp_path / "object"

    def come_first() -> Iterator[bytes]:
        create(str(url), DATA)
        yield from make_stream().pieces()

    assert create_stream(str(url), Stream(len(DATA), make_stream().sha256, come_first))
    assert [path.name for path in tmp_path.iterdir()] == ["object"]
