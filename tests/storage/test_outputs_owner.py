from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from daskinfer.errors import OutputOwned
from daskinfer.storage.outputs.owner import Owner, claim, current_owner


def make_owner(job: str) -> Owner:
    return Owner(job=job, request="sha256:r", snapshot="sha256:s", created="2024-01-01T00:00:00Z")


def test_an_output_has_one_owner_at_a_time(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first, second = make_owner("first"), make_owner("second")
    assert current_owner(url) is None
    assert claim(url, first, None) == first
    assert claim(url, first, None) == first
    assert current_owner(url) == first
    with pytest.raises(OutputOwned, match="belongs to job first"):
        claim(url, second, None)
    assert claim(url, second, first) == second
    assert current_owner(url) == second
    with pytest.raises(OutputOwned, match="belongs to job second"):
        claim(url, first, first)


def test_a_folder_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputOwned, match=r"files that daskinfer did not write: thesis\.tex"):
        current_owner(str(tmp_path))
    with pytest.raises(OutputOwned):
        claim(str(tmp_path), make_owner("job"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_of_many_claimants_one_wins(tmp_path: Path) -> None:
    url, barrier, won = str(tmp_path / "out"), threading.Barrier(8), []

    def race(job: str) -> None:
        barrier.wait()
        with contextlib.suppress(OutputOwned):
            won.append(claim(url, make_owner(job), None))

    threads = [threading.Thread(target=race, args=(f"job-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert current_owner(url) == won[0]
