"""An input with rows that are refused, jobs on it, and retries."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from daskinfer import api
from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.outputs.reading import SealedOutput
from tests.e2e.conftest import Bench, run

BAD = {3: '{"id": "row-3", "text": ', 70: '{"id": "row-70", "text": 7}', 71: '{"id": "row-71"}', 299: "[]"}


def spoil(bench: Bench, bad: Mapping[int, str]) -> None:
    """Put bad rows into the input; the good ones are kept in `good.jsonl`."""
    path, good = bench.folder / "in.jsonl", bench.folder / "good.jsonl"
    if not good.exists():
        shutil.copy(path, good)
    rows = good.read_text().splitlines()
    for place, row in bad.items():
        rows[place] = row
    path.write_text("\n".join(rows) + "\n")


def retry(report: Report, recipe: Recipe, scheduler: str, *overrides: str) -> Report | None:
    words = (f"cluster.address={scheduler}", *overrides)
    return api.retry(report.job, recipe.workspace, overrides=words)


def run_spoilt(bench: Bench, scheduler: str, name: str, **changes: Any) -> tuple[Recipe, Report]:
    """Run a job on rows of which some are bad."""
    spoil(bench, BAD)
    recipe = bench.recipe(name, errors__max_rows=10, **changes)
    report = run(recipe, scheduler)
    assert (report.rows_out, report.rows_quarantined) == (296, 4)
    return recipe, report


def read_rows(output: SealedOutput) -> dict[str, Any]:
    parts = [output.read(number) for number in range(output.layout.partitions)]
    return {
        "row": np.concatenate([part.rows for part in parts]),
        "id": [value for part in parts for value in part.kept.column("id").to_pylist()],
        **{name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
    }
