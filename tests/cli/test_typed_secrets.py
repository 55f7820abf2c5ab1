"""A secret that somebody typed is not said again: not as the way on, not in JSON, not in the traceback of a bug."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from daskinfer import errors
from daskinfer.cli import main
from tests.cli.conftest import FakeApi

URL = "http://ann:planted-word@host/in.jsonl"
TYPED = ("run", "recipe.yaml", "--set", f"input.url={URL}", "--set", "errors.max_rows=0")


@pytest.mark.parametrize("json_wanted", [False, True])
@pytest.mark.parametrize("name", ["JobFailed", "RejectBudgetExceeded", "Interrupted"])
def test_no_way_on_repeats_a_password(fake: FakeApi, folder: Path, name: str, json_wanted: bool) -> None:
    fake.error = getattr(errors, name)(f"cannot read {URL}", hint=f"Look at {URL}.")
    result = CliRunner().invoke(main, [*TYPED, *(["--json"] if json_wanted else [])], prog_name="daskinfer")
    assert result.exit_code == getattr(errors, name).exit_code
    said = result.stdout + result.stderr
    assert "planted-word" not in said and "  daskinfer run recipe.yaml --set" in result.stderr
    if json_wanted:
        found = json.loads(result.stdout.splitlines()[-1])
        assert (found["resume"] is None) == (name == "RejectBudgetExceeded")


def test_the_traceback_of_a_bug_holds_no_password(fake: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    fake.error = ZeroDivisionError(f"403 for {URL}")
    result = CliRunner().invoke(main, [*TYPED], prog_name="daskinfer")
    (path,) = folder.glob("daskinfer-bug-*.txt")
    assert "403 for http://ann:${" in path.read_text()
    for text in (path.read_text(), result.stdout, result.stderr):
        assert "planted-word" not in text
