"""The command as a user types it, and how it ended."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from daskinfer.cli import main
from tests.e2e.commandserver import CommandServer
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
    """Run a command, forked where it behaves as a new process would."""
    found = {**os.environ, **(env or {})}
    server = _start_server()
    if server.can_run(found):
        code, out, err = server.run(words, cwd, found, 300)
    else:
        process = daskinfer(*words, cwd=cwd, env=env)
        out, err = process.communicate(timeout=300)
        code = process.returncode
    assert "Traceback" not in err, err
    assert "a bug" not in err
    return Ended(code, out, err)


@cache
def _start_server() -> CommandServer:
    server = CommandServer()
    atexit.register(server.close)
    return server


def overridden(changes: Mapping[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def start(bench: Bench, **changes: Any) -> Ended:
    """Run the bench's recipe with changes; `pipeline__stages` stands for pipeline.stages."""
    return call(*_words(changes), cwd=bench.folder)


def start_here(bench: Bench, command: str = "run", **changes: Any) -> Ended:
    """Do so in this process, for what is over before anything is begun."""
    with chdir(bench.folder):
        result = CliRunner().invoke(main, _words(changes, command))
    assert "Traceback" not in result.stderr, result.stderr
    assert "a bug" not in result.stderr
    return Ended(result.exit_code, result.stdout, result.stderr)


def _words(changes: Mapping[str, Any], command: str = "run") -> list[str]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return [command, "recipe.yaml", "--json", *overridden(values)]
