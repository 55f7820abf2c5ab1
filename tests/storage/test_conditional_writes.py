"""Create-if-absent on object stores: in parts, on Google's API, and where answers are lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import exists, open_filesystem, read_bytes
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.urls import join_url
from daskinfer.testing.contracts.stores import CreateContract, FilesystemContract, SlotLogContract, race
from daskinfer.testing.faults.faulty_filesystem import Fault, FaultyFS, break_connection, lose_acknowledgement
from daskinfer.testing.servers.servers import S3_BUCKET, environment, serve_gcs, serve_s3

PART = 5 * 2**20
MINE, OTHER = os.urandom(2 * PART + 1), os.urandom(2 * PART + 1)

pytestmark = pytest.mark.s3
needs_gcsfs = pytest.mark.skipif(find_spec("gcsfs") is None, reason="gcsfs is not installed")


@contextmanager
def requests_of(url: str, on_request: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Call `on_request(name, arguments)` before each of S3's requests that this thread makes."""
    filesystem, _ = open_filesystem(url)
    real = filesystem._call_s3

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        # In a thread: this one runs the requests of all filesystems.
        await asyncio.to_thread(on_request, method, options)
        return await real(method, *arguments, **options)

    filesystem._call_s3 = call
    try:
        yield
    finally:
        del filesystem._call_s3


def uploads_of(url: str) -> list[str]:
    filesystem, path = open_filesystem(url)
    found = filesystem.call_s3("list_multipart_uploads", Bucket=path.partition("/")[0])
    return [each["Key"] for each in found.get("Uploads", [])]


@pytest.fixture
def url(s3_url: str) -> str:
    return join_url(s3_url, make_nonce())


def test_parts_appear_at_once_and_under_a_condition(url: str) -> None:
    seen: list[str] = []
    visible: list[bool] = []

    def look(method: str, options: dict[str, Any]) -> None:
        if method in ("upload_part", "complete_multipart_upload"):
            seen.append(method)
            visible.append(exists(url))
        if method == "complete_multipart_upload":
            assert options["IfNoneMatch"] == "*"

    with requests_of(url, look):
        assert create(url, MINE, PART)
    assert seen == ["upload_part"] * 3 + ["complete_multipart_upload"]
    assert visible == [False] * 4
    assert read_bytes(url) == MINE


def test_an_existing_object_wins_over_parts(url: str) -> None:
    assert create(url, b"first")
    assert not create(url, MINE, PART)
    assert read_bytes(url) == b"first"
    assert uploads_of(url) == []
    assert not create(url, b"first" * PART, PART)


def test_an_object_that_appears_during_the_upload_wins(url: str) -> None:
    def overtake(method: str, options: dict[str, Any]) -> None:
        if method == "complete_multipart_upload":
            assert create(url, OTHER)

    with requests_of(url, overtake):
        assert not create(url, MINE, PART)
    assert read_bytes(url) == OTHER
    assert uploads_of(url) == []


def test_one_of_many_uploads_wins(url: str) -> None:
    payloads = [bytes([number]) * (2 * PART) for number in range(3)]
    won = race(lambda number: create(url, payloads[number], PART), writers=3)
    assert won.count(True) == 1
    assert read_bytes(url) == payloads[won.index(True)]


@pytest.mark.parametrize("fault", [lose_acknowledgement, break_connection])
def test_a_lost_acknowledgement_of_an_upload_is_a_success(url: str, fault: Fault) -> None:
    with FaultyFS(url, "pipe_file", fault) as faults:
        assert create(url, MINE, PART)
    assert faults.hits == 1
    assert not create(url, OTHER, PART)


def test_a_short_answer_to_the_read_back_is_asked_again(url: str) -> None:
    """Else a writer's own object, half read, would pass for another's."""
    with (
        FaultyFS(url, "pipe_file", break_connection),
        FaultyFS(url, "cat_file", lambda call: call()[:-1]) as faults,
    ):
        assert create(url, b"mine")
    assert faults.hits == 1


def test_a_folder_of_that_name_is_no_rival(url: str) -> None:
    create(join_url(url, "below"), b"x")

    def refuse(call: Callable[[], Any]) -> Any:
        raise PermissionError("Access Denied")

    with FaultyFS(url, "pipe_file", refuse), pytest.raises(StorageError, match="not allowed"):
        create(url, b"mine")


@pytest.mark.parametrize("faults", ["--conflict=0.4", "--busy=0.3", "--drop=0.3", "--short=0.3"])
def test_what_a_server_and_a_network_do_wrong_is_lived_through(faults: str) -> None:
    with serve_s3(faults, "--seed=1") as variables, environment(variables):
        for number in range(3):
            url = f"s3://{S3_BUCKET}/{make_nonce()}-{number}"
            assert create(url, b"mine")
            assert not create(url, b"else")
            assert read_bytes(url) == b"mine"


@pytest.fixture(scope="module")
def gcs(gcs_url: str) -> str:
    return gcs_url


class TestGoogleCloudStorage(FilesystemContract, CreateContract, SlotLogContract):
    @pytest.fixture
    def store(self, gcs: str) -> str:
        return join_url(gcs, make_nonce())


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp about gcsfs
def test_google_takes_large_objects_in_parts(gcs: str) -> None:
    url = join_url(gcs, make_nonce())
    assert create(url, MINE, PART)
    assert read_bytes(url) == MINE
    assert not create(url, OTHER, PART)
    assert create(url, MINE, PART)
    assert not create(url, b"short")
    assert read_bytes(url) == MINE


def test_google_says_where_an_object_ends(gcs: str) -> None:
    url = join_url(gcs, make_nonce())
    create(url, b"0123")
    for begin in (2, 8):
        with pytest.raises(ShortRead):
            read_bytes(url, begin, begin + 10)


@needs_gcsfs
def test_lost_answers_of_google_are_lived_through() -> None:
    with serve_gcs("--drop=0.5", "--seed=2") as variables, environment(variables):
        for number in range(2):
            url = f"gs://lossy/{number}"
            assert create(url, b"mine")
            assert not create(url, b"other")
            assert read_bytes(url) == b"mine"


@needs_gcsfs
def test_google_is_not_asked_over_grpc() -> None:
    """That probe stalls for a minute where only HTTP passes, and its answer would switch off the condition."""
    code = """
import sys
from daskinfer.storage.objects.filesystem import open_filesystem
filesystem, _ = open_filesystem("gs://bucket/object")
print(type(filesystem).__module__, filesystem.dircache.use_listings_cache)
"""
    with serve_gcs() as variables:
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert done.stdout.split() == ["gcsfs.core", "False"], done.stderr
