"""The command as a user types it, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    words = overridden({key.replace("__", "."): value for key, value in changes.items()})
    return call("run", "recipe.yaml", "--json", *words, cwd=bench.folder)
