from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from daskinfer.cli.output.progress import ProgressDisplay, render_progress
from daskinfer.spec.job.record import Progress
from tests.support.progress import RUNNING


def render(progress: Progress, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render_progress("embed-news", progress))
    return capture.get()


def test_the_live_block_tells_everything() -> None:
    text = render(RUNNING)
    assert "6,144 of 10,000 rows   61%" in text
    assert "1,234 rows/s   8.2 s so far   3.1 s left   2 quarantined" in text
    assert "stage 0 ━━━━━━━━━━ 87% busy   stage 1 ━━━━━━━━━━ 50% busy" in text
    assert len(text.splitlines()) == 3


def test_the_bar_grows() -> None:
    filled = [bar_cells(RUNNING.model_copy(update={"rows_done": done})) for done in (1_000, 5_000, 10_000)]
    assert filled[0] < filled[1] < filled[2]


def bar_cells(progress: Progress) -> int:
    """Return how many cells of the bar are filled, by their colour."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(render_progress("n", progress))
    coloured = re.findall(r"\x1b\[3[62]m(━+)", capture.get().splitlines()[0])
    return sum(map(len, coloured))


def test_a_narrow_terminal_keeps_one_line_each() -> None:
    assert len(render(RUNNING, width=60).splitlines()) == 3


def test_nothing_known_yet() -> None:
    assert "preparing" in render(Progress(phase="preparing"))
    assert "0 of" not in render(Progress(phase="preparing"))


def test_messages_scroll_by_once_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, legacy_windows=False)
    with ProgressDisplay("embed-news", console) as display:
        for _ in range(3):
            display(RUNNING.model_copy(update={"message": "worker [0] lost"}))
    assert file.getvalue().count("worker [0] lost") == 1


def test_a_pipe_gets_one_line_at_the_start() -> None:
    file = io.StringIO()
    with ProgressDisplay("embed-news", Console(file=file, width=200)) as display:
        for _ in range(3):
            display(RUNNING)
    assert file.getvalue() == "embed-news: job j, 10,000 rows\n"


def test_a_pipe_hears_every_half_minute_how_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is heard of the run: then for how long."""
    monkeypatch.setattr("daskinfer.cli.output.progress.PIPE_SECONDS", 0.05)
    file = io.StringIO()
    with ProgressDisplay("embed-news", Console(file=file, width=200)) as display:
        display(Progress(phase="preparing", message="looking at the workers"))
        wait_for(file, r"embed-news: preparing for .* s, looking at the workers")
        display(RUNNING)
        wait_for(file, r"embed-news: running, 6,144 of 10,000 rows, 1,234 rows/s, 3.1 s left, 2 quarantined")
    before = file.getvalue()
    time.sleep(0.2)
    assert file.getvalue() == before


def test_a_terminal_moves_while_nothing_is_heard() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, legacy_windows=False)
    with ProgressDisplay("embed-news", console) as display:
        display(Progress(phase="starting", job="j"))
        wait_for(file, r"starting for [1-9]\d*\.\d s")


def test_a_worker_that_is_left_alone_is_named_once_in_a_pipe() -> None:
    file = io.StringIO()
    with ProgressDisplay("embed-news", Console(file=file, width=200)) as display:
        for message in (
            "worker tcp://a is left alone: it is old",
            "worker-left-alone: worker tcp://a is left alone: it is old",
        ):
            display(Progress(phase="preparing", message=message))
    assert file.getvalue() == "embed-news: worker tcp://a is left alone: it is old\n"


def wait_for(file: io.StringIO, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not re.search(pattern, file.getvalue()):
        assert time.monotonic() < deadline, file.getvalue()
        time.sleep(0.02)
