from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.knobs import STORE_ATTEMPTS
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, exists, read_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.testing.contracts.stores import CreateContract, race
from daskinfer.testing.faults.faulty_filesystem import (
    Fault,
    FaultyFS,
    be_busy,
    be_full,
    break_connection,
    deny,
    lose_acknowledgement,
)

RACER = """
import sys, time
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import exists
from daskinfer.storage.objects.urls import join_url
folder, number = sys.argv[1], int(sys.argv[2])
create(join_url(folder, f"ready-{number}"), b"x")
while not exists(join_url(folder, "go")):
    time.sleep(0.005)
for turn in range(int(sys.argv[3])):
    if create(join_url(folder, f"race-{turn}"), f"{number}".encode() * 1000):
        print(turn)
"""


class TestCreate(CreateContract):
    @pytest.fixture
    def store(self, any_store: str) -> str:
        return any_store


def race_processes(folder: str, turns: int, writers: int = 4) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, folder, str(number), str(turns)], stdout=subprocess.PIPE)
        for number in range(writers)
    ]
    try:
        while not all(exists(join_url(folder, f"ready-{number}")) for number in range(writers)):
            assert all(racer.poll() in (None, 0) for racer in racers)
        create(join_url(folder, "go"), b"x")
        won = [set(map(int, racer.communicate(timeout=180)[0].split())) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert [racer.returncode for racer in racers] == [0] * writers
    assert sorted(turn for turns in won for turn in turns) == list(range(turns))
    for number, turns_won in enumerate(won):
        for turn in turns_won:
            assert read_bytes(join_url(folder, f"race-{turn}")) == f"{number}".encode() * 1000


def test_one_process_wins_on_a_local_disk(tmp_path: Path) -> None:
    race_processes(str(tmp_path), turns=100)


@pytest.mark.s3
def test_one_process_wins_on_s3(s3_url: str) -> None:
    race_processes(join_url(s3_url, make_nonce()), turns=6, writers=2)


@pytest.mark.s3
@pytest.mark.parametrize("fault", [lose_acknowledgement, break_connection])
def test_a_lost_acknowledgement_is_a_success(s3_url: str, fault: Fault) -> None:
    url = join_url(s3_url, make_nonce())
    with FaultyFS(url, "pipe_file", fault) as faults:
        assert create(url, b"mine")
    assert faults.hits == 1
    assert read_bytes(url) == b"mine"


@pytest.mark.s3
def test_a_busy_store_is_tried_again(s3_url: str) -> None:
    url = join_url(s3_url, make_nonce())
    with FaultyFS(url, "pipe_file", be_busy, times=3) as faults:
        assert create(url, b"mine")
    assert faults.hits == 3
    with FaultyFS(url, "pipe_file", be_busy, times=2):
        assert not create(url, b"other")


@pytest.mark.s3
@STORE_ATTEMPTS.override(2)
def test_a_store_that_stays_busy_is_given_up(s3_url: str) -> None:
    url = join_url(s3_url, make_nonce())
    with FaultyFS(url, "pipe_file", be_busy, times=99), pytest.raises(StorageError, match="stayed busy"):
        create(url, b"mine")
    assert not exists(url)


@pytest.mark.s3
def test_s3_refusals_are_explained(s3_url: str) -> None:
    url = join_url(s3_url, make_nonce())
    with FaultyFS(url, "pipe_file", deny), pytest.raises(StorageError, match="not allowed to create"):
        create(url, b"mine")
    with FaultyFS(url, "pipe_file", be_full), pytest.raises(StorageError, match="no space left"):
        create(url, b"mine")
    with pytest.raises(StorageError, match="cannot create s3://no-such-bucket-here/x"):
        create("s3://no-such-bucket-here/x", b"mine")


def test_nfs_may_deny_a_link_that_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert create(str(tmp_path / "x"), b"mine")
    assert (tmp_path / "x").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_disk_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"not safe to use.*no hard links"):
        create(str(tmp_path / "x"), b"mine")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = f"""
import resource, signal, errno
from daskinfer.errors import StorageError
from daskinfer.storage.objects.create_if_absent import create
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {limits[1]}))
try:
    create({str(tmp_path / "x")!r}, bytes(5000))
except StorageError as error:
    assert {str(tmp_path / "x")!r} in error.message, error
    assert error.__cause__.errno == errno.EFBIG
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=180)
    assert done.stdout == "refused\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_space_left_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def open_on_full_disk(path: Path, mode: str = "r") -> object:
        return real_open(Path("/dev/full"), "wb", buffering=0) if mode == "xb" else real_open(path, mode)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(StorageError, match=f"no space left on {tmp_path}/x") as refused:
        create(str(tmp_path / "x"), b"mine")
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_unknown_stores_are_refused() -> None:
    with pytest.raises(StorageError, match=r"not safe to use: .* no atomic create on dir"):
        create("dir::file:///tmp/nowhere", b"x")


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in ("file/x", "file/folder/x"):
        with pytest.raises(StorageError, match="cannot"):
            create(str(tmp_path / path), b"mine")


def test_objects_that_come_and_go_are_created_in_the_end(tmp_path: Path) -> None:
    url = str(tmp_path / "x")

    def act(number: int) -> None:
        for _ in range(50):
            create(url, f"{number}".encode())
            delete(url)

    race(act, writers=3)
    assert list(tmp_path.iterdir()) == []
