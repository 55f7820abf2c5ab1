"""What is asked in the control log becomes an event of the driver that it is meant for, once."""

from __future__ import annotations

from pathlib import Path

from daskinfer.runtime.driver.control_requests import ControlRequests
from daskinfer.runtime.protocol.events import CancelAsked, DrainAsked, Event
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.objects.slotlog import SlotLog


def look(log: ControlLog, epoch: int, answers: dict[int, str] | None = None) -> list[Event | None]:
    """Return what a new driver of this epoch hears, after it has given these answers."""
    heard: list[Event | None] = []
    desk = ControlRequests(log, epoch, lambda event: heard.append(event()))
    for number, detail in (answers or {}).items():
        desk.answer(number, detail)
    desk.look()
    desk.close()
    return heard


def test_requests_are_for_the_drivers_there_were_when_they_were_made(tmp_path: Path) -> None:
    log = ControlLog(str(tmp_path))
    log.ask_drain(2, "tcp://a:1")
    log.ask_cancel(2)
    drain, cancel = look(log, epoch=2)
    assert isinstance(drain, DrainAsked) and (drain.number, drain.worker) == (0, "tcp://a:1")
    assert isinstance(cancel, CancelAsked) and cancel.number == 1 and "@" in cancel.by
    assert look(log, epoch=1) == [drain, cancel]  # one of several drivers that were at work
    assert look(log, epoch=3) == []


def test_what_is_answered_is_not_heard_again(tmp_path: Path) -> None:
    log = ControlLog(str(tmp_path))
    first, second = log.ask_drain(1, "a"), log.ask_drain(1, "b")
    (heard,) = look(log, 1, {first: "done"})
    assert isinstance(heard, DrainAsked) and heard.number == second
    answer = log.find_answer(first)
    assert answer is not None and (answer.epoch, answer.detail) == (1, "done")


def test_a_log_that_cannot_be_read_does_not_end_the_run(tmp_path: Path) -> None:
    log = ControlLog(str(tmp_path))
    SlotLog(str(tmp_path / "control")).append({"op": "explode"})
    log.ask_cancel(1)
    assert look(log, 1) == []
