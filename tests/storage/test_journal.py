from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer.errors import Conflict, IntegrityError, StorageError
from daskinfer.ids import make_nonce
from daskinfer.storage.jobs.journal import Event, Journal, read_journal


def test_events_come_back_in_order_over_epochs(tmp_path: Path) -> None:
    for epoch in (1, 2, 10):
        journal = Journal(str(tmp_path), epoch, events=3, seconds=1e9)
        for number in range(7):
            journal.append(Event(at=number / 2, kind="commit", detail={"partition": number}))
        journal.flush()
        journal.flush()
    assert sorted(path.name for path in (tmp_path / "journal").iterdir())[:3] == [
        "0001-000000.jsonl",
        "0001-000001.jsonl",
        "0001-000002.jsonl",
    ]
    assert list(read_journal(str(tmp_path))) == [
        Event(at=number / 2, kind="commit", detail={"partition": number}, epoch=epoch)
        for epoch in (1, 2, 10)
        for number in range(7)
    ]


def test_readable_while_running(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 1, events=100, seconds=5)
    assert list(read_journal(str(tmp_path))) == []
    journal.append(Event(0.0, "started"))
    journal.append(Event(4.9, "commit"))
    assert list(read_journal(str(tmp_path))) == []
    journal.append(Event(5.0, "commit"))
    assert [event.at for event in read_journal(str(tmp_path))] == [0.0, 4.9, 5.0]
    journal.append(Event(6.0, "waiting"))
    journal.keep_up(10.9)
    assert len([*read_journal(str(tmp_path))]) == 3
    journal.keep_up(11.0)  # nothing else has happened since
    assert [event.at for event in read_journal(str(tmp_path))] == [0.0, 4.9, 5.0, 6.0]


def test_two_writers_of_one_epoch(tmp_path: Path) -> None:
    first, second = Journal(str(tmp_path), 1), Journal(str(tmp_path), 1)
    first.append(Event(0.0, "mine"))
    first.flush()
    second.append(Event(0.0, "theirs"))
    with pytest.raises(Conflict, match=r"0001-000000\.jsonl was written by another process"):
        second.flush()
    assert [event.kind for event in read_journal(str(tmp_path))] == ["mine"]


def test_failed_write_keeps_the_events(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text("in the way")
    journal = Journal(str(job), 1)
    journal.append(Event(0.0, "started"))
    with pytest.raises(StorageError, match="journal"):
        journal.flush()
    job.unlink()
    journal.flush()
    assert [event.kind for event in read_journal(str(job))] == ["started"]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 1)
    journal.append(Event(0.0, "started"))
    journal.flush()
    with (tmp_path / "journal" / "0001-000000.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(IntegrityError, match=r"0001-000000\.jsonl, line 2 is not an event"):
        list(read_journal(str(tmp_path)))


WRITER = """
import sys
from daskinfer.storage.jobs.journal import Event, Journal

journal, number = Journal(sys.argv[1], 1, events=3), 0
while True:
    journal.append(Event(float(number), "tick", {"n": number}))
    number += 1
    if number == 30:
        print(flush=True)
"""


def test_killed_writer_leaves_whole_events(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer:
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    numbers = [event.detail["n"] for event in read_journal(str(tmp_path))]
    assert len(numbers) >= 30
    assert numbers == list(range(len(numbers)))


@pytest.mark.s3
def test_on_s3(s3_url: str) -> None:
    url = f"{s3_url}/journal-{make_nonce()}"
    journal = Journal(url, 1, events=2)
    for number in range(4):
        journal.append(Event(float(number), "tick"))
    assert [event.at for event in read_journal(url)] == [0.0, 1.0, 2.0, 3.0]
