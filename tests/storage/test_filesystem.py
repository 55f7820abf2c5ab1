from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fsspec import filesystem

from daskinfer.errors import InputError, IntegrityError, NotAllowed, StorageError, StorageRefused, UsageError
from daskinfer.ids import make_nonce
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.objects.filesystem import exists, list_names, read_bytes, replace_bytes
from daskinfer.storage.objects.local_files import refuse_unwritable
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url
from daskinfer.testing.contracts.stores import FilesystemContract
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, be_full, cut_short, deny


class TestFilesystem(FilesystemContract):
    @pytest.fixture
    def store(self, any_store: str) -> str:
        return any_store


def test_absolute_url_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_url("work/../data") == f"{tmp_path}/data"
    assert absolute_url("./x", Path("/base")) == "/base/x"
    assert absolute_url("~/x") == "/home/someone/x"
    assert absolute_url("file:///a/b/") == "/a/b"
    assert absolute_url("s3://bucket/key/") == "s3://bucket/key"
    assert absolute_url("memory://m") == "memory://m"
    assert join_url("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"


@pytest.mark.parametrize("part", ["..", "../a", "a/../../b", "a\0b"])
def test_no_part_of_a_url_leaves_its_base(part: str) -> None:
    with pytest.raises(IntegrityError, match="leaves s3://bucket"):
        join_url("s3://bucket", "a", part)
    assert [is_local(url) for url in ("a/b", "file:///a", "s3://b", "simplecache::s3://b")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_short_read_is_an_error() -> None:
    url = f"memory://{make_nonce()}/x"
    replace_bytes(url, b"0123456789")
    with FaultyFS(url, "cat_file", cut_short) as faults, pytest.raises(ShortRead, match=r"2 to 6 .* 3 came"):
        read_bytes(url, 2, 6)
    assert faults.hits == 1
    assert read_bytes(url, 2, 6) == b"2345"


@pytest.mark.s3
def test_what_another_process_writes_is_seen_at_once(s3_url: str) -> None:
    url = join_url(s3_url, make_nonce())
    stranger = filesystem("s3", skip_instance_cache=True)
    replace_bytes(join_url(url, "one"), b".")
    assert list_names(url) == ["one"] and not exists(join_url(url, "two"))
    stranger.pipe_file(join_url(url, "two"), b".")
    assert list_names(url) == ["one", "two"] and exists(join_url(url, "two"))
    stranger.rm_file(join_url(url, "one"))
    assert list_names(url) == ["two"] and not exists(join_url(url, "one"))


def test_a_full_or_forbidden_store_is_named() -> None:
    url = f"memory://{make_nonce()}/x"
    with FaultyFS(url, "pipe_file", be_full), pytest.raises(StorageError, match=f"no space left on {url}") as full:
        replace_bytes(url, b"x")
    assert full.value.hint and "Free some space" in full.value.hint
    with FaultyFS(url, "pipe_file", deny), pytest.raises(StorageError, match=f"not allowed to write {url}"):
        replace_bytes(url, b"x")


def test_an_unreachable_store_is_no_traceback() -> None:
    code = """
from daskinfer.errors import InputError, IntegrityError, NotAllowed, StorageError, StorageRefused, UsageError
from daskinfer.storage.objects.filesystem import read_bytes
try:
    read_bytes("s3://nowhere/x")
except StorageError as error:
    print(error)
"""
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_MAX_ATTEMPTS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert "cannot read s3://nowhere/x" in done.stdout and "127.0.0.1:9" in done.stdout, done.stdout


def test_readers_of_a_replaced_file_see_old_or_new(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    versions = [bytes([digit]) * 200_000 for digit in range(8)]
    replace_bytes(url, versions[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(read_bytes(url))

    reader = threading.Thread(target=watch)
    reader.start()
    for version in versions * 3:
        replace_bytes(url, version)
    stop.set()
    reader.join()
    assert seen <= set(versions)
    assert list_names(str(tmp_path)) == ["file"]


def test_half_written_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".slot.json.0123.tmp").write_bytes(b"half")
    (tmp_path / "slot.json").write_bytes(b"whole")
    assert list_names(str(tmp_path)) == ["slot.json"]
    assert exists(str(tmp_path))


def test_a_folder_that_cannot_be_written_to_is_refused_without_a_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "shut").mkdir(mode=0o500)
    refuse_unwritable(str(tmp_path / "new/deep"))
    refuse_unwritable("s3://bucket/of-which-only-a-write-can-tell")
    for place, message in {"file": "is a file", "file/deep": "is a file", "link/deep": "is a link to nothing"}.items():
        with pytest.raises(UsageError, match=message):
            refuse_unwritable(str(tmp_path / place))
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(StorageError, match="not allowed"):
            refuse_unwritable(str(tmp_path / "shut/deep"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "shut"]


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    place = tmp_path / "job.json"
    os.mkfifo(place)
    writer = os.open(place, os.O_RDWR | os.O_NONBLOCK)  # whoever opens it to read does not wait for ever
    os.write(writer, b"{}")
    try:
        with pytest.raises(StorageError, match="no file but a pipe") as refused:
            read_bytes(str(place), 0, 2)
    finally:
        os.close(writer)
    assert str(place) in refused.value.message and refused.value.hint


@pytest.mark.parametrize("place", ["/proc/x.parquet", "/sys/x.parquet", "/dev/null/x.parquet"])
def test_places_where_nobody_can_make_files_are_refused(place: str) -> None:
    if not Path(place).parent.exists():
        pytest.skip("this system has no such place")
    with pytest.raises((UsageError, NotAllowed), match=r"cannot write to|not allowed"):
        refuse_unwritable(place)


@pytest.mark.parametrize("pattern", ["x.jsonl", "*.jsonl"])
def test_an_http_server_that_is_away_is_a_refusal_of_the_store(pattern: str) -> None:
    with pytest.raises(StorageRefused, match=r"127\.0\.0\.1:1"):
        find_input(Input(url=f"http://127.0.0.1:1/{pattern}"))


def test_a_file_that_an_http_server_does_not_have_is_no_input() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="nothing matches"):
            find_input(Input(url=f"http://127.0.0.1:{server.server_port}/no-such-file.jsonl"))
        server.shutdown()


def test_an_unknown_protocol_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="foo") as refused:
        find_input(Input(url="foo://x.jsonl"))
    assert "s3://" in (refused.value.hint or "")


def test_a_server_without_ranges_is_called_one(tmp_path: Path) -> None:
    tmp_path.joinpath("x.jsonl").write_bytes(b"0123456789")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StorageError, match="ignores Range requests"):
            read_bytes(f"http://127.0.0.1:{server.server_port}/x.jsonl", 0, 3)
        server.shutdown()
