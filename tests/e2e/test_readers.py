"""Outputs as other libraries open them, in an environment of their own that has no daskinfer (`make late` makes it)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Bench, run, write_rows

PYTHON = Path(__file__).parents[2] / ".venv-readers/bin/python"
ROWS = 60
READ = """
import json, warnings
warnings.simplefilter("error")
import duckdb, pandas, polars, pyarrow.dataset, xarray
tables = {
    "pandas": pandas.read_parquet("out.parquet"),
    "arrow": pyarrow.dataset.dataset("out.parquet").to_table().to_pandas(),
    "duckdb": duckdb.sql("select * from 'out.parquet'").df(),
    # Of a folder Polars takes every file for data, whatever it is called.
    "polars": polars.read_parquet("out.parquet/*.parquet").to_pandas(),
}
found = {name: [[*table.columns], table.id.tolist(), len(table.embedding[0])] for name, table in tables.items()}
opened = xarray.open_zarr("out.zarr")
valid = opened.isel(row=opened.valid.values)
found["xarray"] = [[*map(str, opened.embedding.dims)], valid.id.values.tolist(), int(valid.embedding.isnull().sum())]
print(json.dumps(found))
"""


@pytest.mark.late
@pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-readers; make late makes it")
def test_outputs_open_by_their_place_in_other_libraries(bench: Bench, scheduler: str) -> None:
    source = bench.folder / "in.jsonl"
    write_rows(source, ROWS)
    source.write_text(source.read_text() + '{"id": "broken", "text": null}\n')
    for suffix in ("parquet", "zarr"):
        run(bench.recipe(f"out.{suffix}", errors__max_rows=1, input__partition_rows=16), scheduler)
    done = subprocess.run([PYTHON, "-c", READ], cwd=bench.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ids = [json.loads(line)["id"] for line in source.read_text().splitlines()][:ROWS]
    columns = [["row", "id", "embedding"], ids, 32]
    assert found == {
        **dict.fromkeys(("pandas", "arrow", "duckdb", "polars"), columns),
        "xarray": [["row", "embedding_1"], ids, 0],
    }
