"""The command as a user types it, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from daskinfer.cli import main
from tests.e2e.conftest import Bench, daskinfer


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        (line,) = self.out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


def call(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    process = daskinfer(*words, cwd=cwd, env=env)
    out, err = process.communicate(timeout=90)
    assert "Traceback" not in err, err
    assert "a bug" not in err
    return Ended(process.returncode, out, err)


def overridden(changes: Mapping[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def start(bench: Bench, **changes: Any) -> Ended:
    """Run the bench's recipe with changes; `pipeline__stages` stands for pipeline.stages."""
    return call(*_words(changes), cwd=bench.folder)


def start_here(bench: Bench, **changes: Any) -> Ended:
    """Do so in this process, for runs that are over before anything is begun."""
    with chdir(bench.folder):
        result = CliRunner().invoke(main, _words(changes))
    assert "Traceback" not in result.stderr, result.stderr
    assert "a bug" not in result.stderr
    return Ended(result.exit_code, result.stdout, result.stderr)


def _words(changes: Mapping[str, Any]) -> list[str]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return ["run", "recipe.yaml", "--json", *overridden(values)]
