"""What a microbatch costs the driver and the scheduler, at few and at many microbatches: it must not grow.

Runs a model that computes next to nothing through two stages, on workers whose scheduler is a process of its own, and
reads the CPU seconds of the driver (this process) and of the scheduler between the first partition and the last
commit. What both use while they idle is taken off:

    python -m benchmarks overhead --microbatches 1000 20000
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from distributed import Client
from rich.console import Console
from rich.table import Table

from benchmarks.product.separate import start_cluster
from daskinfer import api
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.units import format_amount

ROLES = ("driver", "scheduler")
IDLE_SECONDS = 5.0
STAGES = 2
FEATURES = 8


@dataclass
class Meter:
    """CPU seconds of both processes, read when the job starts and stops running."""

    processes: dict[str, psutil.Process]
    readings: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def read(self) -> None:
        used = {role: sum(process.cpu_times()[:2]) for role, process in self.processes.items()}
        self.readings.append((time.monotonic(), used))

    def watch(self, progress: Progress) -> None:
        """Read when the phase `running` begins, and when it ends."""
        if (progress.phase == "running" and not self.readings) or (
            progress.phase == "sealing" and len(self.readings) == 1
        ):
            self.read()

    def used(self) -> tuple[float, dict[str, float]]:
        """Return seconds between the readings, and CPU seconds by role."""
        (began, before), (ended, after) = self.readings
        return ended - began, {role: after[role] - before[role] for role in ROLES}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--microbatches", type=int, nargs=2, default=[1_000, 20_000], metavar=("FEW", "MANY"))
    parser.add_argument("--partition", type=int, default=100, help="microbatches of a partition")
    parser.add_argument(
        "--limit", type=float, default=2.0, help="milliseconds that a microbatch may cost either of them"
    )
    parser.add_argument("--growth", type=float, default=1.25, help="largest ratio of many to few before it fails")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of CPU a microbatch of each job."""
    shutil.rmtree(options.work, ignore_errors=True)
    work = options.work.resolve()
    api.publish(
        "tiny", registry=str(work / "registry"), entry="daskinfer.testing.models.ownmodels:make_own", alias="prod"
    )
    with start_cluster(STAGES) as cluster:
        address, scheduler = cluster.address, cluster.scheduler
        idle = measure_idle(address, scheduler)
        # The first has what only comes once.
        counts = (options.partition, *options.microbatches)
        _, *costs = [measure_job(count, options.partition, work, address, scheduler, idle) for count in counts]
    return {"microbatches": options.microbatches, "milliseconds": costs, "idle": idle, "stages": STAGES}


def measure_idle(address: str, scheduler: psutil.Process) -> dict[str, float]:
    """Return the CPU seconds that both use in a second of doing nothing."""
    with Client(address):
        meter = Meter({"driver": psutil.Process(), "scheduler": scheduler})
        meter.read()
        time.sleep(IDLE_SECONDS)
        meter.read()
    seconds, used = meter.used()
    return {role: value / seconds for role, value in used.items()}


def measure_job(
    microbatches: int, partition: int, work: Path, address: str, scheduler: psutil.Process, idle: dict[str, float]
) -> dict[str, float]:
    """Return milliseconds of CPU for each microbatch, by role, over one job."""
    name = f"overhead-{microbatches}"
    group = zarr.open_group(work / f"{name}-in.zarr", mode="w")
    rows = np.arange(microbatches * FEATURES, dtype=np.float32).reshape(microbatches, FEATURES) % 7
    group.create_array("features", data=rows, chunks=(partition, FEATURES))
    recipe = Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": name,
            "workspace": str(work),
            "model": {"checkpoint": "tiny@prod", "task": "forward"},
            "input": {"url": str(work / f"{name}-in.zarr"), "columns": {"features": "features"}}
            | {"partition_rows": partition},
            "output": {"url": str(work / f"{name}-out.parquet")},
            # One row a microbatch.
            "pipeline": {"stages": STAGES, "microbatch_tokens": 1, "activations": {"transport": "direct"}},
            "cluster": {"address": address},
        }
    )
    meter = Meter({"driver": psutil.Process(), "scheduler": scheduler})
    report = api.run(recipe, fresh=True, watch=meter.watch)
    if report.rows_out != microbatches or report.stages[0].microbatches != microbatches:
        sys.exit(f"{report.rows_out} rows in {report.stages[0].microbatches} microbatches, not {microbatches}")
    seconds, used = meter.used()
    print(f"{format_amount(microbatches, 'microbatch')} in {seconds:.1f} s", file=sys.stderr)
    return {role: 1000 * (used[role] - idle[role] * seconds) / microbatches for role in ROLES}


def show(result: dict[str, Any]) -> None:
    """Print the costs side by side."""
    microbatches, costs = result["microbatches"], result["milliseconds"]
    table = Table(title=f"milliseconds of CPU a microbatch, {STAGES} stages")
    for column in ("", *(f"{format_amount(count, 'microbatch')}" for count in microbatches), "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for role in ROLES:
        few, many = (cost[role] for cost in costs)
        table.add_row(role, f"{few:.2f}", f"{many:.2f}", f"{many / few:.2f}")
    Console().print(table)


def check(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return where a microbatch costs too much, or the more the more there are."""
    few, many = result["milliseconds"]
    limit, growth = options.limit, options.growth
    wrong = [
        f"{role}: {few[role]:.2f} ms, then {many[role]:.2f} ms"
        for role in ROLES
        if max(few[role], many[role]) > limit or many[role] > growth * few[role]
    ]
    return [f"more than {limit} ms a microbatch, or more by over {growth}: {'; '.join(wrong)}"] if wrong else []
