"""The control log: requests reach the driver that they are meant for, and answers whoever asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.objects.slotlog import SlotLog


@pytest.fixture
def log(tmp_path: Path) -> ControlLog:
    return ControlLog(str(tmp_path / "job"))


def test_a_request_says_who_when_and_whom_it_means(log: ControlLog) -> None:
    assert log.ask_drain(3, "tcp://10.0.0.1:1") == 0
    ((number, record),) = log.read()
    assert (number, record.op, record.epoch, record.worker) == (0, "drain", 3, "tcp://10.0.0.1:1")
    assert "@" in record.by and record.at


def test_an_answer_is_found_by_its_request(log: ControlLog) -> None:
    first, second = log.ask_drain(1, "a"), log.ask_drain(1, "b")
    assert log.find_answer(first) is None
    log.answer(1, second, "b is gone")
    assert log.find_answer(first) is None
    found = log.find_answer(second)
    assert found is not None and found.detail == "b is gone"


def test_reading_goes_on_where_it_stopped(log: ControlLog) -> None:
    log.ask_cancel(1)
    assert [number for number, _ in log.read(0)] == [0]
    assert list(log.read(1)) == []
    log.ask_cancel(1)
    assert [number for number, _ in log.read(1)] == [1]


def test_workers_that_anybody_wanted_drained_are_remembered(log: ControlLog) -> None:
    assert log.drained() == frozenset()
    log.ask_drain(1, "a")
    log.ask_cancel(1)
    log.ask_drain(2, "b")
    assert log.drained() == {"a", "b"}


def test_a_driver_is_cancelled_once_it_has_answered(log: ControlLog) -> None:
    drained, cancelled = log.ask_drain(1, "a"), log.ask_cancel(1)
    assert log.cancelled(1) is None
    log.answer(1, drained, "")
    assert log.cancelled(1) is None
    log.answer(1, cancelled, "")
    found = log.cancelled(1)
    assert found is not None and found.op == "cancel"
    assert log.cancelled(2) is None  # the next driver was not


def test_no_request_of_many_at_once_is_lost(log: ControlLog) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: log.ask_drain(1, f"w{n}"), range(24)))
    assert sorted(numbers) == list(range(24))
    assert {record.worker for _, record in log.read()} == {f"w{n}" for n in range(24)}


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    SlotLog(str(tmp_path / "job/control")).append({"op": "explode"})
    with pytest.raises(IntegrityError, match="not a record of a control log"):
        list(ControlLog(str(tmp_path / "job")).read())
