"""What the encryption of a local cluster costs: a hop between two workers, and a whole job, with it and without in turn.

python -m benchmarks encryption --rounds 3
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, wait
from rich.console import Console
from rich.table import Table

from daskinfer import api
from daskinfer.runtime.cluster.connection import open_cluster
from daskinfer.spec.recipe.schema import Cluster, LocalCluster, Recipe
from daskinfer.testing.models.tinymodels import make_tiny_bert

KINDS = ("none", "tls")
SIZES = {"1 kB": 1_000, "1 MB": 1_000_000, "16 MB": 16_000_000, "64 MB": 64_000_000}
HOPS = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--checkpoint", help="a checkpoint's folder; a small random BERT by default")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of every round, and their medians."""
    shutil.rmtree(options.work, ignore_errors=True)
    work = options.work.resolve()
    checkpoint = options.checkpoint or str(make_bert(work / "bert"))
    api.publish("bert", checkpoint, registry=str(work / "registry"), alias="prod")
    write_rows(work / "rows.jsonl", options.rows)
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for round in range(options.rounds + 1):
        for kind in KINDS if round % 2 else reversed(KINDS):
            workers = LocalCluster(tls=kind == "tls")
            costs = measure_hops(workers) | measure_job(work, f"{kind}-{round}", options.stages, workers)
            print(kind, costs, file=sys.stderr, flush=True)
            if round:  # the first is what only comes once
                for what, seconds in costs.items():
                    found[kind].setdefault(what, []).append(seconds)
    medians = {kind: {what: statistics.median(times) for what, times in found[kind].items()} for kind in KINDS}
    return {"rounds": found, "medians": medians}


def make_bert(path: Path) -> Path:
    """Make a BERT of MiniLM's size, random."""
    return make_tiny_bert(path, layers=6, hidden=384)


def write_rows(path: Path, rows: int) -> None:
    """Write texts of about 100 words."""
    texts = (" ".join(["the cat sat on a mat and the dog ran"] * (1 + number % 20)) for number in range(rows))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def measure_hops(workers: LocalCluster) -> dict[str, float]:
    """Return seconds from the end of a task on one worker to the end of one that takes its result on another."""
    costs = {}
    with open_cluster(Cluster(local=workers)) as (client, _):
        first, second = sorted(client.scheduler_info(n_workers=-1)["workers"])
        for name, size in SIZES.items():
            costs[name] = statistics.median(hop(client, first, second, size) for _ in range(HOPS))
    return costs


def hop(client: Client, first: str, second: str, size: int) -> float:
    """Return the seconds of one hop."""
    there = client.submit(np.random.default_rng().bytes, size, workers=[first], pure=False)
    wait(there)
    began = time.perf_counter()
    wait(client.submit(len, there, workers=[second], pure=False))
    return time.perf_counter() - began


def measure_job(work: Path, name: str, stages: int, workers: LocalCluster) -> dict[str, float]:
    """Return the seconds of an embedding job whose activations move over the connections, running and as a whole."""
    recipe = Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": name,
            "workspace": str(work),
            "model": {"checkpoint": "bert@prod", "task": "embed"},
            "input": {"url": str(work / "rows.jsonl"), "partition_rows": 256},
            "output": {"url": str(work / f"{name}.zarr")},
            "cluster": {"local": workers.model_dump()},
            "pipeline": {"stages": stages, "activations": {"transport": "direct"}},
        }
    )
    report = api.run(recipe)
    return {"job, running": report.running_seconds, "job, whole": report.seconds}


def show(result: dict[str, Any]) -> None:
    """Print the medians side by side."""
    medians = result["medians"]
    table = Table(title="seconds, median")
    for column in ("", *KINDS, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for what in medians["none"]:
        plain, closed = (medians[kind][what] for kind in KINDS)
        table.add_row(what, f"{plain:.4f}", f"{closed:.4f}", f"{closed / plain:.3f}")
    Console().print(table)


def check(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    return []
