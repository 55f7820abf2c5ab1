"""Memory of the driver, the scheduler and the workers at few and at many rows: it must not grow with the rows.

Runs `daskinfer run` on a tiny random model and samples the resident memory of every process of the job. The peak is the
most that any process of a role held; steady is the median over the second half of the run, when all is warm:

    python -m benchmarks memory --rows 10000 100000 1000000

`--scheduler` starts the scheduler and the workers beforehand, each in a process of its own; otherwise the scheduler is
part of the driver.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.product.separate import Cluster, start_cluster
from daskinfer.testing.fixtures.workers import find_workers
from daskinfer.testing.models.tinymodels import make_tiny_bert
from daskinfer.units import format_amount, format_bytes

DASKINFER = Path(sys.executable).with_name("daskinfer")
INTERVAL = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 100_000], help="the first is what others may exceed"
    )
    parser.add_argument("--partition-rows", type=int, default=500, help="small, so that there are many partitions")
    parser.add_argument("--limit", type=float, default=1.10, help="largest ratio of most to fewest before it fails")
    parser.add_argument("--scheduler", action="store_true", help="give the scheduler a process of its own")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a job of each number of rows."""
    shutil.rmtree(options.work, ignore_errors=True)
    model = make_tiny_bert(options.work / "model", layers=2)
    found = []
    for rows in options.rows:
        with start_cluster(2) if options.scheduler else nullcontext(None) as cluster:
            found.append(measure_job(rows, options.partition_rows, model, options.work.resolve() / str(rows), cluster))
    ratios = {role: found[-1][role] / found[0][role] for role in found[0]}
    return {"rows": options.rows, "bytes": found, "ratios": ratios}


def check(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return what grew with the rows."""
    too_big = {role: round(ratio, 3) for role, ratio in result["ratios"].items() if ratio > options.limit}
    return [f"memory grew with the rows by more than {options.limit}: {too_big}"] if too_big else []


def measure_job(rows: int, partition_rows: int, model: Path, work: Path, cluster: Cluster | None) -> dict[str, int]:
    """Return resident bytes by role over one job of `rows` rows: most and in the second half, of the largest process."""
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
    if cluster is not None:
        recipe["cluster"] = {"address": cluster.address}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command: list[Any] = [DASKINFER, "run", work / "recipe.yaml", "--json"]
    samples: defaultdict[str, list[int]] = defaultdict(list)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        driver = psutil.Process(job.pid)
        while job.poll() is None:
            for role, size in sample(driver, cluster).items():
                samples[role].append(size)
            time.sleep(INTERVAL)
        assert job.stdout is not None
        result = json.loads(job.stdout.read().splitlines()[-1]) if job.returncode == 0 else sys.exit(job.returncode)
    if result["rows_out"] != rows:
        sys.exit(f"{result['rows_out']} rows came out of {rows}")
    figures = {f"{role}, peak": max(sizes) for role, sizes in samples.items()}
    figures |= {f"{role}, steady": int(statistics.median(sizes[len(sizes) // 2 :])) for role, sizes in samples.items()}
    return figures


def sample(driver: psutil.Process, cluster: Cluster | None) -> dict[str, int]:
    """Return resident bytes now, of the largest process of every role."""
    sizes: Counter[str] = Counter()
    parents = [driver] if cluster is None else cluster.nannies
    try:
        sizes["driver"] = driver.memory_info().rss
        if cluster is not None:
            sizes["scheduler"] = cluster.scheduler.memory_info().rss
        for process in (worker for parent in parents for worker in find_workers(parent.pid)):
            try:
                sizes["worker"] = max(sizes["worker"], process.memory_info().rss)
            except psutil.Error:  # it ended between the two calls
                continue
    except psutil.NoSuchProcess:
        return {}
    return dict(sizes)


def show(result: dict[str, Any]) -> None:
    """Print the figures side by side."""
    rows, found = result["rows"], result["bytes"]
    table = Table(title="resident memory of the largest process")
    for column in ("", *(f"{format_amount(count, 'row')}" for count in rows), "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for role in sorted(found[0]):
        sizes = [figures[role] for figures in found]
        table.add_row(role, *map(format_bytes, sizes), f"{sizes[-1] / sizes[0]:.3f}")
    Console().print(table)
