from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from daskinfer import api
from daskinfer.cli import main
from daskinfer.cli.output.console import patient_streams
from daskinfer.cli.output.progress import ProgressDisplay
from daskinfer.cli.output.show import print_report
from daskinfer.cli.output.silence import breaking_silence
from daskinfer.cli.output.text import Text
from daskinfer.errors import InputError
from daskinfer.units import escape_controls
from tests.cli.conftest import FakeApi
from tests.support.progress import RUNNING

encodings = pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
NAMES = "café 中文 \x1b[2J \udcff.jsonl"


def open_stream(encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


@contextmanager
def console(encoding: str) -> Iterator[tuple[TextIO, TextIO]]:
    out, err = open_stream(encoding), open_stream(encoding)
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def written(stream: TextIO) -> bytes:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


@encodings
def test_a_report_is_printed_whatever_the_console_can_write(encoding: str, fake: FakeApi) -> None:
    with console(encoding) as (out, _), patient_streams():
        print_report(fake.make_report(rejects=(f"{NAMES}:3: not JSON",)))
    assert b"not JSON" in written(out)
    assert b"\x1b" not in written(out)


@encodings
def test_json_is_json_on_every_console(encoding: str, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    report = fake.make_report(rejects=("café 中 😀:3: not JSON",))
    monkeypatch.setattr(api, "report", lambda job, workspace: report)
    with console(encoding) as (out, _), pytest.raises(SystemExit) as ended:
        main(["report", "j", "--json"])
    assert ended.value.code == 0
    assert json.loads(written(out).decode("ascii"))["rejects"] == list(report.rejects)


@encodings
def test_progress_is_shown_whatever_the_console_can_write(encoding: str) -> None:
    with console(encoding) as (_, err), patient_streams():
        terminal = Console(stderr=True, force_terminal=True, width=100, soft_wrap=True)
        with ProgressDisplay("café", terminal) as display:
            display(RUNNING.model_copy(update={"message": NAMES}))
    assert b"busy" in written(err)
    assert (b"#" in written(err)) == (encoding != "utf-8")


def test_an_error_shows_control_characters_and_does_not_send_them(
    fake: FakeApi, folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.error = InputError("no rows in \x1b[31mred\x07.jsonl\nnext", hint="see \x9b2J")
    result = CliRunner().invoke(main, ["run", "recipe.yaml"])
    assert result.exit_code == 2
    assert "no rows in \\x1b[31mred\\x07.jsonl\n  next" in result.stderr
    assert "see \\x9b2J" in result.stderr


def test_only_what_controls_is_escaped() -> None:
    assert escape_controls("plain ü\t中\n") == "plain ü\t中\n"
    assert escape_controls("a\x00b\u202ec\udcff") == "a\\x00b\\u202ec\\udcff"


@pytest.mark.parametrize("redirection", ["| true", "2>&1 >/dev/null | true", ">&-", "2>&-"])
def test_a_console_that_has_gone_ends_nothing(redirection: str) -> None:
    code = (
        "import os, sys, click; from daskinfer.cli.output.console import patient_streams\n"
        "with patient_streams():\n"
        "    for _ in range(20000): sys.stdout.write('out\\n'); sys.stderr.write('err\\n')\n"
        "    click.echo('x'); click.echo('x', err=True)\n"
        "os.write(3, b'done')\n"
    )
    found = subprocess.run(
        ["bash", "-c", f'exec 3>&1; "$PYTHON" -c "$CODE" {redirection}'], capture_output=True, text=True, check=False,
        env={**os.environ, "CODE": code, "PYTHON": sys.executable},
    )  # fmt: skip
    assert "done" in found.stdout
    assert "Traceback" not in found.stdout + found.stderr
    assert "Exception ignored" not in found.stdout + found.stderr


@pytest.mark.parametrize("redirection", ["> /dev/full", "2> /dev/full", "> /dev/full 2>&1", "2>&-", ">&-", ">&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("schema", 0), ("validate nowhere.yaml", 2)])
def test_a_full_or_closed_console_is_told_by_the_exit_code_alone(redirection: str, arguments: str, code: int) -> None:
    command = f"{sys.executable} -m daskinfer {arguments} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=180, check=False)
    is_lost = redirection.startswith(">") and code == 0
    assert done.returncode == (1 if is_lost else code)
    assert ("standard output could not be written" in done.stderr) == (is_lost and "2>" not in redirection)
    assert "bug" not in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_command_that_says_nothing_is_heard_all_the_same() -> None:
    with console("utf-8") as (_, err), patient_streams() as silence, breaking_silence(silence, 0.1):
        deadline = time.monotonic() + 60
        while written(err).count(b"still working, ") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    said = len(written(err))
    time.sleep(0.3)
    assert len(written(err)) == said, "it ends with the command"


def test_a_command_that_speaks_is_not_interrupted() -> None:
    with console("utf-8") as (out, err), patient_streams() as silence, breaking_silence(silence, 30):
        sys.stdout.write("a line\n")
        assert silence() < 30
    assert not written(err) and written(out) == b"a line\n"


def test_only_our_own_orders_reach_a_terminal() -> None:
    with console("utf-8") as (out, _), patient_streams():
        sys.stdout.write("\x1b[1;31mred\x1b[0m \x1b[2K\x1b[1A\n\tnext\r")
        sys.stdout.write("\x1b]0;title\x07 \x1b[2J \x9b31m \u202ename \x1bP \x00 \x1b[6n")
    text = written(out).decode()
    assert text.startswith("\x1b[1;31mred\x1b[0m \x1b[2K\x1b[1A\n\tnext\r")
    rest = text.partition("\r")[2]
    assert rest == r"\x1b]0;title\x07 \x1b[2J \x9b31m \u202ename \x1bP \x00 \x1b[6n"


def test_styled_text_obeys_nobody_but_us() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=1000)
    evil = "a\x1b[2K\x1b[31m\u202e\rb"
    console.print(Text(evil, style="bold"), Text.assemble((evil, "red"), evil), Text("x").append(evil))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2K" not in written and "\u202e" not in written and "\r" not in written
    assert written.count(r"a\x1b[2K\x1b[31m\u202e\rb") == 4


FORGED = "a\nerror: planted\tb\rdone\x1b[2K"


def test_no_text_from_outside_begins_a_line(fake: FakeApi, folder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may hold newlines, and what follows one would look like a line of ours."""
    told = {"name": FORGED, "checkpoint": FORGED, "output": FORGED}
    report = fake.make_report(rejects=(FORGED,), report=FORGED, precision=FORGED, **told)
    monkeypatch.setattr(api, "report", lambda job, workspace: report)
    jobs = [fake.status("embed-news-1", FORGED).model_copy(update=told)]
    monkeypatch.setattr(api, "jobs", lambda *given, **more: jobs)
    monkeypatch.setattr(api, "status", lambda *given, **more: jobs[0])
    monkeypatch.setattr(api, "validate", lambda recipe: [f"input: {FORGED}", FORGED])
    for words in (["report", "j"], ["jobs"], ["status", "j"], ["validate", "recipe.yaml"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
        assert "planted" in result.output
        assert not [line for line in result.output.splitlines() if line.startswith("error: planted")], words
        assert "\x1b" not in result.output
