"""What a job wrote, read back by plain means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.job_output import open_output
from tests.e2e.conftest import read_output


def read_columns(output: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of a Zarr or Parquet output, without the rows that were refused."""
    if output.suffix == ".zarr":
        arrays = read_output(output)
        return {name: values[arrays["valid"]] for name, values in arrays.items()}
    table = pq.read_table(output)
    types = {"double": np.float64, "float": np.float32, "int64": np.int64}
    columns = {}
    for field in table.schema:
        inner = field.type
        while hasattr(inner, "value_type"):
            inner = inner.value_type
        columns[field.name] = np.array(table[field.name].to_pylist(), dtype=types.get(str(inner)))
    return columns


def read_quarantine(output: Path) -> dict[int, str]:
    """Return why rows were refused, by row."""
    lines = [line for path in (output / "_quarantine").rglob("*.jsonl") for line in path.read_text().splitlines()]
    return {row["row"]: row["error"] for row in map(json.loads, lines)}


def read_microbatches(recipe: Recipe, report: Report) -> list[tuple[tuple[int, int], ...]]:
    """Return the (rows, length) of all microbatches, partition by partition, as the commit records tell."""
    records = open_output(JobStore(recipe.workspace, report.job).record(), recipe.workspace).committed()
    return [record.microbatches for record in sorted(records, key=lambda record: record.partition)]
