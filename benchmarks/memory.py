"""Peak memory of the driver and the scheduler at few and at many rows: it must not grow with the rows.

Runs `daskinfer run` on a tiny random model and samples the resident memory of every process of the job:

    python benchmarks/memory.py --rows 1000 100000
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from daskinfer.testing.tinymodels import make_tiny_bert
from daskinfer.units import format_bytes

DASKINFER = Path(sys.executable).with_name("daskinfer")
INTERVAL = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 100_000], metavar=("FEW", "MANY"))
    parser.add_argument("--partition-rows", type=int, default=500, help="small, so that there are many partitions")
    parser.add_argument("--limit", type=float, default=1.10, help="largest ratio of many to few before it fails")
    parser.add_argument("--work", type=Path, default=Path("work/bench-memory"))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    model = make_tiny_bert(options.work / "model", layers=2)
    peaks = [measure(rows, options.partition_rows, model, options.work.resolve() / str(rows)) for rows in options.rows]
    ratios = {role: peaks[1][role] / peaks[0][role] for role in peaks[0] if role != "workers"}
    if options.json:
        print(json.dumps({"rows": options.rows, "peaks": peaks, "ratios": ratios}))
    else:
        show(options.rows, peaks)
    too_big = {role: round(ratio, 3) for role, ratio in ratios.items() if ratio > options.limit}
    if too_big:
        sys.exit(f"memory grew with the rows by more than {options.limit}: {too_big}")


def measure(rows: int, partition_rows: int, model: Path, work: Path) -> dict[str, int]:
    """Return peak resident bytes by role over one job of `rows` rows."""
    work.mkdir(parents=True)
    texts = ("the small cat sleeps" + " in the warm sun" * (row % 4) + f" {row}" for row in range(rows))
    with (work / "rows.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"id": row, "text": text}) + "\n" for row, text in enumerate(texts))
    recipe = {
        "daskinfer": 1,
        "name": f"memory-{rows}",
        "workspace": str(work),
        "model": {"checkpoint": str(model.resolve()), "options": {"max_length": 32}},
        "input": {"url": str(work / "rows.jsonl"), "partition_rows": partition_rows},
        "output": {"url": str(work / "out.zarr"), "keep": ["id"]},
        "pipeline": {"stages": 2, "activations": {"transport": "zarr"}},
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command: list[Any] = [DASKINFER, "run", work / "recipe.yaml", "--json"]
    peaks: Counter[str] = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        driver = psutil.Process(job.pid)
        while job.poll() is None:
            for role, size in sample(driver).items():
                peaks[role] = max(peaks[role], size)
            time.sleep(INTERVAL)
        assert job.stdout is not None
        result = json.loads(job.stdout.read().splitlines()[-1]) if job.returncode == 0 else sys.exit(job.returncode)
    if result["rows_out"] != rows:
        sys.exit(f"{result['rows_out']} rows came out of {rows}")
    return dict(peaks)


def sample(driver: psutil.Process) -> dict[str, int]:
    """Return resident bytes now, by role; without a process of its own the scheduler is part of the driver."""
    sizes: Counter[str] = Counter()
    try:
        sizes["driver"] = driver.memory_info().rss
        for process in driver.children(recursive=True):
            try:
                role = "scheduler" if any("scheduler" in word for word in process.cmdline()) else "workers"
                sizes[role] += process.memory_info().rss
            except psutil.Error:  # it ended between the two calls
                continue
    except psutil.NoSuchProcess:
        return {}
    return dict(sizes)


def show(rows: list[int], peaks: list[dict[str, int]]) -> None:
    """Print the peaks side by side."""
    table = Table(title="peak resident memory")
    for column in ("", *(f"{count:,} rows" for count in rows), "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for role in sorted(peaks[0]):
        few, many = (peak[role] for peak in peaks)
        table.add_row(role, format_bytes(few), format_bytes(many), f"{many / few:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
