"""What a run compares before it uses workers that it has not started, and where it finds them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.api import clusters
from daskinfer.errors import JobFailed
from daskinfer.runtime.cluster.background import requests
from daskinfer.runtime.cluster.background.requests import (
    background_status,
    borrow_cluster,
    compare_circumstances,
    describe_circumstances,
    socket_path,
)
from daskinfer.runtime.cluster.private_folder import find_private, make_private, open_private
from daskinfer.spec.recipe.schema import LocalCluster


def test_equal_workers_are_equal_however_they_were_written() -> None:
    local = LocalCluster()
    again = LocalCluster.model_validate_json(local.model_dump_json())
    assert compare_circumstances(describe_circumstances(local), describe_circumstances(again)) == []


def test_whatever_workers_depend_on_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_circumstances(LocalCluster())

    def differing() -> list[str]:
        return compare_circumstances(before, describe_circumstances(LocalCluster()))

    monkeypatch.setenv("COLUMNS", "80")
    assert differing() == []
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert differing() == ["the variable AWS_PROFILE"]
    assert "other" not in "".join(describe_circumstances(LocalCluster()).values())
    monkeypatch.delenv("AWS_PROFILE")
    umask = os.umask(0o077)
    try:
        os.umask(umask ^ 0o007)
        assert differing() == ["the umask"]
    finally:
        os.umask(umask)
    monkeypatch.chdir(tmp_path)
    assert "the working directory" in differing()


def make_link(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, make_link, Path.mkdir])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "background.lock")
    with pytest.raises(OSError, match=r"background\.lock"):
        open_private(tmp_path / "background.lock")


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    assert find_private(tmp_path) is None
    folder = make_private(tmp_path)
    assert folder is not None and make_private(tmp_path) == find_private(tmp_path) == folder
    folder.chmod(0o755)
    assert make_private(tmp_path) is None and find_private(tmp_path) is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("place", "damage", "said"),
    [
        ("a" * 100, lambda folder: None, "too long a path"),
        ("a", lambda folder: (folder / "background.log").mkdir(), "was put there by somebody else"),
        ("a", lambda folder: os.mkfifo(folder / "background.lock"), "was put there by somebody else"),
        ("a", lambda folder: folder.chmod(0o755), "is not yours alone"),
    ],
)
def test_no_cluster_starts_where_its_files_cannot_be(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, damage: Callable[[Path], object], said: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / place))
    folder = make_private(short_folder / place)
    assert folder is not None
    damage(folder)
    with pytest.raises(JobFailed, match=said):
        clusters.start_cluster()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/dev/null")
    with pytest.raises(JobFailed, match="no folder for the background cluster's socket"):
        clusters.start_cluster()


@pytest.mark.timeout(60)
def test_a_process_that_does_not_answer_is_told(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    monkeypatch.setattr(requests, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.2)
    path = socket_path(make=True)
    assert path is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert background_status() is None
        for call in (clusters.cluster_status, clusters.stop_cluster):
            with pytest.raises(JobFailed, match="a background cluster is there, and its process does not answer"):
                call()
        told: list[str] = []
        with borrow_cluster(LocalCluster(), told.append) as offer:
            assert offer is None
        assert told == ["the background cluster is not used: its process does not answer within 0 s"]
