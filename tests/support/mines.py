"""Jobs on rows that break the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daskinfer import api
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.minefield import FEATURES


def lay(folder: Path, rows: int, mines: dict[int, tuple[float, int]]) -> NDArray[np.float32]:
    """Publish the model and write rows for it, some of them with (mark, layer)."""
    api.publish(
        "mines",
        registry=str(folder / "work/registry"),
        entry="daskinfer.testing.models.minefield:make_minefield",
        alias="prod",
    )
    values = np.random.default_rng(0).standard_normal((rows, FEATURES), dtype=np.float32)
    for row, mark in mines.items():
        values[row, :2] = mark
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), FEATURES)
    pq.write_table(pa.table({"features": column, "id": range(rows)}), folder / "rows.parquet")
    return values


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "daskinfer": 1,
        "name": "mines",
        "workspace": str(folder / "work"),
        "model": {"checkpoint": "mines@prod", "task": "forward"},
        "input": {"url": str(folder / "rows.parquet"), "columns": {"features": "features"}, "partition_rows": 1000},
        "output": {"url": str(folder / "out.parquet"), "keep": ["id"]},
        "pipeline": {"stages": 2, "microbatch_tokens": 100},
        "cluster": {"local": {"workers": 2}},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return Recipe.model_validate(document)
