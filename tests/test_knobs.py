"""What may be tuned: its default, its variable, and the page that lists it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer.errors import UsageError
from daskinfer.knobs import KNOBS, PROGRESS_SECONDS, STORE_ATTEMPTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "knobs.md"


def test_the_page_lists_every_knob() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `DASKINFER_")]
    assert rows == [f"| `{knob.variable}` | {knob.default:,} | {knob.unit} | {knob.purpose} |" for knob in KNOBS]


def test_an_override_ends_with_its_context() -> None:
    with STORE_ATTEMPTS.override(2):
        with STORE_ATTEMPTS.override(3):
            assert STORE_ATTEMPTS.get() == 3
        assert STORE_ATTEMPTS.get() == 2
    assert STORE_ATTEMPTS.get() == STORE_ATTEMPTS.default


def test_an_override_reaches_processes_that_start_within() -> None:
    script = "from daskinfer.knobs import PROGRESS_SECONDS; print(PROGRESS_SECONDS.get())"
    with PROGRESS_SECONDS.override(0.5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0.5\n"


@pytest.mark.parametrize("text", ["", "two", "2.5", "-1"])
def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DASKINFER_STORE_ATTEMPTS", text)
    with pytest.raises(UsageError, match=r"DASKINFER_STORE_ATTEMPTS is .* not a whole number of attempts"):
        STORE_ATTEMPTS.get()
