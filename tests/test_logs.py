"""Log records: what they are about, how they are written, and that nothing is written unasked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daskinfer.graphs.tasks import run_task
from daskinfer.logs import LogSettings, log_settings, logging_context, set_up_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    set_up_logging(None)
    logging.getLogger().setLevel(level)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_say_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    set_up_logging(LogSettings(format="json", file=str(path)))
    log = logging.getLogger("mymodel")
    with logging_context(job="job-1", epoch=2, snapshot="sha256:1"):
        log.info("begun %s", "now", extra={"rows": 3})
        with logging_context(partition=0, stage=1, snapshot="sha256:2", microbatch=None):
            log.warning("hot", extra={"heat": Path("x")})
        log.info("on")
    log.info("outside")
    first, second, third, last = read(path)
    assert first["message"] == "begun now" and (first["level"], first["logger"]) == ("info", "mymodel")
    assert (first["job"], first["epoch"], first["snapshot"], first["rows"]) == ("job-1", 2, "sha256:1", 3)
    assert "partition" not in first and first["time"].endswith("+00:00") and ":" in first["process"]
    assert (second["job"], second["partition"], second["stage"], second["snapshot"]) == ("job-1", 0, 1, "sha256:2")
    assert "microbatch" not in second and second["heat"] == "x"
    assert third["snapshot"] == "sha256:1" and "partition" not in third
    assert "job" not in last


def test_a_task_lends_its_context_to_whatever_it_calls(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    set_up_logging(LogSettings(format="json", file=str(path)))

    def forward(value: int) -> int:
        logging.getLogger("mymodel").info("computing %d", value)
        return value + 1

    assert run_task({"job": "job-1", "partition": 3, "attempt": 1}, forward, 4) == 5
    with pytest.raises(ZeroDivisionError):
        run_task({"job": "job-2"}, lambda: 1 // 0)
    logging.getLogger("mymodel").info("after")
    inside, after = read(path)
    assert (inside["job"], inside["partition"], inside["attempt"]) == ("job-1", 3, 1)
    assert "job" not in after


def test_a_traceback_stays_in_its_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    set_up_logging(LogSettings(format="json", file=str(path)))
    try:
        raise ValueError("too\nhot")
    except ValueError:
        logging.getLogger("mymodel").exception("failed")
    (record,) = read(path)
    assert record["traceback"].endswith("ValueError: too\nhot")


def test_text_is_for_people(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    set_up_logging(LogSettings(file=str(path)))
    with logging_context(job="job-1", partition=7):
        logging.getLogger("mymodel").info("hello", extra={"rows": 3})
        logging.getLogger("mymodel").debug("not asked for")
    (line,) = path.read_text().splitlines()
    assert line.endswith("INFO mymodel [job=job-1 partition=7 rows=3] hello")


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    set_up_logging(LogSettings(format="json", file=str(path), level="debug"))
    logging.getLogger("daskinfer.graphs").debug("yes")
    logging.getLogger("fsspec.local").debug("its own affair")
    logging.getLogger("fsspec.local").warning("trouble")
    assert [record["message"] for record in read(path)] == ["yes", "trouble"]


def test_the_last_word_counts(tmp_path: Path) -> None:
    settings = [LogSettings(format="json", file=str(tmp_path / name)) for name in ("one", "two")]
    for each in settings:
        set_up_logging(each)
        assert log_settings() == each
    logging.getLogger("mymodel").info("once")
    set_up_logging(None)
    logging.getLogger("mymodel").info("never")
    assert (tmp_path / "one").read_text() == "" and len(read(tmp_path / "two")) == 1
    assert log_settings() is None
    with pytest.raises(OSError):
        set_up_logging(LogSettings(file=str(tmp_path / "no/such/folder")))


def test_processes_share_a_file_line_by_line(tmp_path: Path) -> None:
    code = """
import logging, sys
from daskinfer.logs import LogSettings, set_up_logging
set_up_logging(LogSettings(format="json", file=sys.argv[1]))
for number in range(200):
    logging.getLogger("mymodel").info("x" * 5_000, extra={"number": number})
"""
    path = tmp_path / "log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [writer.wait(180) for writer in writers] == [0, 0, 0]
    records = read(path)
    assert len(records) == 600 and all(len(record["message"]) == 5_000 for record in records)


def test_nothing_is_written_unasked() -> None:
    code = "import logging, daskinfer.logs; logging.getLogger('daskinfer.runtime').error('quiet')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("kind", ["json", "text"])
def test_what_a_record_hides_is_shown(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "log"
    set_up_logging(LogSettings(format=kind, file=str(path)))
    evil = "a\x1b[2K\x9b2J\u202e\u2028\x85b\n2026-01-01 INFO forged"
    with logging_context(job=evil):
        logging.getLogger("mymodel").warning(evil)
    text = path.read_bytes().decode()
    assert not set(text) & set("\x1b\x9b\u202e\u2028\x85")
    if kind == "json":
        (record,) = read(path)
        assert record["message"] == record["job"] == evil
    else:
        assert not [line for line in text.splitlines()[1:] if not line.startswith("  ")]


def test_a_record_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model code may log anything; and the disk of the log may be full."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # else each is told on stderr
    for file, written in ((str(tmp_path / "log.txt"), "second"), ("/dev/full", "")):
        set_up_logging(LogSettings(file=file))
        try:
            logging.getLogger("daskinfer").warning("%d rows", "not a number")
            logging.getLogger("daskinfer").warning("second")
        finally:
            set_up_logging(None)
        assert written in (Path(file).read_text() if written else "")
