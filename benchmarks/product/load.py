"""Loading one stage of a random checkpoint against reading the same bytes raw.

Writes a checkpoint (2 GB in float32 by default) as layer groups, then loads a quarter of it with digests verified, each
time in a process of its own, in turns with two raw reads of the same bytes by one thread from the warm page cache: into
new memory, and into memory that was written to before:

    python -m benchmarks load --bytes 2e9
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.testing.fixtures.groups import store_group
from daskinfer.units import format_bytes, format_duration

LAYERS = 32
STAGES = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bytes", type=float, default=2e9, help="size of the checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="precision of the stage; the checkpoint has float32")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return medians over processes that load and read in turns."""
    shutil.rmtree(options.work, ignore_errors=True)
    try:
        write_checkpoint(options.work, int(options.bytes))
        roles = ("load", "raw-new", "raw-used")
        # The first round warms the page cache and is not counted.
        rounds = [{role: run(role, options) for role in roles} for _ in range(options.repeats + 1)][1:]
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    load_result = rounds[0]["load"]
    return {
        "shard_bytes": load_result["shard"],
        "read_ratio": max(turn["load"]["read"] for turn in rounds) / load_result["stored"],
        "memory_ratio": max(turn["load"]["peak"] for turn in rounds) / load_result["shard"],
        **{f"{role}_seconds": statistics.median(turn[role]["seconds"] for turn in rounds) for role in roles},
        **{
            f"load_to_{role}": statistics.median(turn["load"]["seconds"] / turn[role]["seconds"] for turn in rounds)
            for role in roles[1:]
        },
    }


def write_checkpoint(work: Path, nbytes: int) -> None:
    """Write blobs of one linear layer each, and the groups of the second quarter as stage.json."""
    width = math.isqrt(nbytes // LAYERS // 4)
    random = np.random.default_rng(0)
    groups = []
    for number in range(LAYERS):
        name = f"layers.{number}"
        arrays = {
            f"{name}.weight": random.random((width, width), dtype=np.float32),
            f"{name}.bias": random.random(width, dtype=np.float32),
        }
        groups.append(store_group(str(work.absolute()), name, arrays))
    first, last = LAYERS // STAGES, 2 * LAYERS // STAGES
    (work / "stage.json").write_text(json.dumps([group.model_dump() for group in groups[first:last]]))


def run(role: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure once, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.product.load", role, options.work, options.dtype]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def load(work: Path, groups: list[LayerGroup], dtype: str) -> dict[str, Any]:
    """Load the stage as a worker does."""
    import torch
    from torch import nn

    from daskinfer.models.execution.weights import fill_module
    from daskinfer.storage.tensors.node_cache import load_tensors

    width = groups[0].tensors[0].shape[0]
    layers = nn.ModuleDict()
    for group in groups:
        linear = nn.Linear(width, width, device="meta", dtype=getattr(torch, dtype))
        layers[group.name.rpartition(".")[2]] = linear
    pairs = [(group, entry) for group in groups for entry in group.tensors]
    wanted = {entry.name: entry for _, entry in pairs}
    module = nn.ModuleDict({"layers": layers})
    before = start_peak()
    began = time.perf_counter()
    count = fill_module(module, wanted, partial(load_tensors, str(work.absolute()), pairs))
    seconds = time.perf_counter() - began
    peak = read_status("VmHWM") - before
    shard = sum(tensor.nbytes for tensor in module.parameters())
    return {
        "seconds": seconds,
        "read": count,
        "stored": sum(entry.end - entry.begin for entry in wanted.values()),
        "shard": shard,
        "peak": peak,
    }


def read(role: str, work: Path, groups: list[LayerGroup]) -> dict[str, Any]:
    """Read the same bytes with nothing else done to them."""
    entries: list[tuple[LayerGroup, TensorEntry]] = [(group, entry) for group in groups for entry in group.tensors]
    memory = [np.empty(entry.end - entry.begin, dtype=np.uint8) for _, entry in entries]
    if role == "raw-used":
        for array in memory:
            array.fill(1)
    began = time.perf_counter()
    for (group, entry), array in zip(entries, memory, strict=True):
        with (work / str(group.blob)).open("rb", buffering=0) as file:
            file.seek(entry.begin)
            done = 0
            while done < len(array):
                done += file.readinto(array.data[done:]) or sys.exit("the blob is short")
    return {"seconds": time.perf_counter() - began}


def start_peak() -> int:
    """Forget the highest resident memory so far; return the present one, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_status("VmRSS")


def read_status(field: str) -> int:
    """Return a size that Linux tells of this process, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else sys.exit(f"this machine does not tell {field}")


def show(result: dict[str, Any]) -> None:
    """Print what was found."""
    table = Table(title=f"loading a stage of {format_bytes(result['shard_bytes'])}")
    for column in ("", "median", "load is"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("load, digests verified", format_duration(result["load_seconds"]), "")
    for role, name in (("raw-new", "raw read into new memory"), ("raw-used", "raw read into used memory")):
        table.add_row(name, format_duration(result[f"{role}_seconds"]), f"{result[f'load_to_{role}']:.2f} x")
    table.add_row("bytes read / wanted", f"{result['read_ratio']:.4f}", "")
    table.add_row("peak memory / shard", f"{result['memory_ratio']:.3f}", "")
    Console().print(table)


def check(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    return []


def main() -> None:
    """One process of `run`: ROLE WORK DTYPE."""
    role, work, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    groups = [LayerGroup.model_validate(group) for group in json.loads((work / "stage.json").read_text())]
    print(json.dumps(load(work, groups, dtype) if role == "load" else read(role, work, groups)))


if __name__ == "__main__":
    main()
