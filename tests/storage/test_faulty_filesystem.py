"""Faults do what they say, on every kind of store: or a test that survives them has proved nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.knobs import STORE_ATTEMPTS
from daskinfer.storage.objects.backoff import is_transient
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, exists, list_names, read_bytes, replace_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import is_local, join_url
from daskinfer.testing.faults.faulty_filesystem import (
    FAULTS,
    FaultSchedule,
    answer_409,
    answer_503,
    kill_after,
    kill_before,
)

CHILD = """
import sys
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.testing.faults import faulty_filesystem
url, fault = sys.argv[1:]
method = "pipe_file" if "://" in url else "link"
with faulty_filesystem.FaultyFS(url, method, getattr(faulty_filesystem, fault)):
    create(url, b"mine")
"""


def always(name: str, **options: float) -> FaultSchedule:
    return FaultSchedule(0, {name: 1.0}, **options)


def try_to_create(url: str) -> bool | str:
    try:
        return create(url, b"mine")
    except StorageError as error:
        return error.message


@pytest.mark.parametrize("fault", [kill_before, kill_after])
@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_process_dies_before_or_after(request: pytest.FixtureRequest, place: str, fault: object) -> None:
    root = str(request.getfixturevalue("tmp_path" if place == "local" else "s3_url"))
    url = join_url(root, make_nonce())
    name = fault.__name__  # type: ignore[attr-defined]
    child = subprocess.run([sys.executable, "-c", CHILD, url, name], check=False, timeout=180)
    assert child.returncode == -signal.SIGKILL
    assert exists(url) == (name == "kill_after")


def test_a_lost_answer_leaves_the_object(any_store: str) -> None:
    url = join_url(any_store, "object")
    with always("drop").installed() as schedule:
        answer = try_to_create(url)
    assert schedule.hits["drop"] >= 1 and read_bytes(url) == b"mine"
    # Whoever can look whether it is theirs does; nobody else writes to memory, so that nothing looks there.
    assert answer is True or (any_store.startswith("memory") and "connection reset" in str(answer))


def test_an_object_of_ours_is_not_taken_for_anothers(any_store: str) -> None:
    with always("lose").installed() as schedule:
        assert create(join_url(any_store, "object"), b"mine")
    assert schedule.hits["lose"] == (0 if any_store.startswith("memory") else 1)


@STORE_ATTEMPTS.override(2)
def test_a_busy_store_does_nothing(any_store: str) -> None:
    url = join_url(any_store, "object")
    create(url, b"there")
    with always("busy").installed() as schedule:
        for act in (read_bytes, list_names, exists, delete):
            with pytest.raises(StorageError, match="SlowDown"):
                act(url)
        with pytest.raises(StorageError, match=r"SlowDown|stayed busy"):
            replace_bytes(url, b"mine")
        with schedule.paused():
            assert read_bytes(url) == b"there"
    assert schedule.hits["busy"] >= 5


def test_a_read_is_short_and_a_listing_stale(any_store: str) -> None:
    log = SlotLog(join_url(any_store, "log"))
    for number in range(3):
        log.append({"n": number})
    with always("short").installed():
        assert read_bytes(log.slot_url(0)) + b"}" == read_bytes_undisturbed(log.slot_url(0))
    with always("stale").installed():
        assert list_names(log.url) == ["000000000000.json", "000000000001.json"]
        head = log.head()
        assert head is not None and head.sequence == 2
        assert list_names(any_store) == ["log"]


def read_bytes_undisturbed(url: str) -> bytes:
    with FaultSchedule(0, {}).installed() as schedule, schedule.paused():
        return read_bytes(url)


def test_a_delay_is_only_that(any_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with always("delay", delay_seconds=9.0).installed() as schedule:
        assert create(join_url(any_store, "object"), b"mine")
    assert len(waited) == schedule.hits["delay"] >= 1 and all(0 < seconds < 9 for seconds in waited)
    if is_local(any_store):
        assert list_names(any_store) == ["object"]


def test_a_schedule_is_that_of_its_seed() -> None:
    def draw(seed: int, rates: dict[str, float]) -> list[str]:
        schedule = FaultSchedule(seed, rates, delay_seconds=0)
        for _ in range(2000):
            schedule.apply("ls", lambda: ["000000000000.json"])
        return [f"{name} {hits}" for name, hits in sorted(schedule.hits.items())]

    rates = {"drop": 0.3, "delay": 0.1, "stale": 0.2}
    assert draw(1, rates) == draw(1, rates) != draw(2, rates)
    # What cannot happen to a listing leaves the shares of the others alone.
    hits = dict(line.split() for line in draw(1, rates))
    assert hits.keys() == {"delay", "stale"} and 140 < int(hits["delay"]) < 260 and 320 < int(hits["stale"]) < 480


def test_statuses_are_told_from_failures() -> None:
    for fault in (answer_409, answer_503):
        with pytest.raises(OSError) as refused:
            fault(lambda: None)
        assert is_transient(refused.value)


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="no fault 'flood'; there are busy, conflict"):
        FaultSchedule(0, {"flood": 0.1})
    assert {"busy", "conflict", "delay", "drop", "kill", "lose", "short", "stale"} == FAULTS
