"""Result files: one JSON object for each name and day."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_result(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write a result under its name and date."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{result['machine']['date']}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    return path


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the latest result of each name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem[-10:]):
        found[path.stem[:-11]] = json.loads(path.read_text())
    return found
