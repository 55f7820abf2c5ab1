"""What the kernels of linear layers make of a job on this machine: the same job by each of them, in turn.

    python benchmarks/kernels.py --input data/glosses.jsonl --rows 2000

Prints how fast oneDNN was measured to be, the running time of an embedding job by torch's own product, by oneDNN and by
`auto`, and the largest difference between the vectors of the first two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from daskinfer.models.execution.kernels import measure_onednn
from daskinfer.runtime.cluster.device_description import describe_device

ROOT = Path(__file__).resolve().parent.parent
DASKINFER = Path(sys.executable).with_name("daskinfer")
KERNELS = ("torch", "onednn", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input", type=Path, default=Path("data/glosses-all.jsonl"), help="jsonl with id and text")
    parser.add_argument("--model", type=Path, help="checkpoint folder; all-MiniLM-L6-v2 unless told")
    parser.add_argument("--work", type=Path, default=Path("work/bench-kernels"))
    parser.add_argument("--write", action="store_true", help="keep it as benchmarks/results/kernels-DATE.json")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = (
        options.model
        or subprocess.run(
            [sys.executable, ROOT / "recipes/minilm.py"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
    )
    rows = work / "rows.jsonl"
    rows.write_text("".join(options.input.read_text().splitlines(keepends=True)[: options.rows]))
    speeds = measure_onednn()
    times: dict[str, list[float]] = {kernels: [] for kernels in KERNELS}
    for repeat in range(options.repeats + 1):
        for kernels in KERNELS if repeat % 2 else reversed(KERNELS):
            seconds = run(work, model, rows, kernels)
            print(f"{kernels}: {seconds:.1f} s", file=sys.stderr, flush=True)
            if repeat:  # the first is what only comes once
                times[kernels].append(seconds)
    torch, onednn = (read(work / f"{kernels}.zarr") for kernels in KERNELS[:2])
    found: dict[str, Any] = {
        "at": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": describe_device().name,
        "onednn": speeds,
        "rows": options.rows,
        "seconds": times,
        "difference": float(np.abs(torch - onednn).max()),
    }
    table = Table("kernels", "seconds, median", "of torch's", title=f"{found['device']}: {speeds}")
    base = statistics.median(times["torch"])
    for kernels in KERNELS:
        median = statistics.median(times[kernels])
        table.add_row(kernels, f"{median:.2f}", f"{median / base:.3f}")
    Console().print(table)
    print(f"largest difference between the vectors: {found['difference']:.1e}")
    if options.write:
        target = ROOT / "benchmarks/results" / f"kernels-{found['at']}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(found) + "\n")


def run(work: Path, model: str | Path, rows: Path, kernels: str) -> float:
    """Run the job anew and return its running time in seconds."""
    settings = {
        "workspace": work,
        "name": kernels,
        "model.checkpoint": model,
        "model.kernels": kernels,
        "input.url": rows,
        "output.url": work / f"{kernels}.zarr",
    }
    command: list[Any] = [DASKINFER, "run", ROOT / "recipes/embed_text.yaml", "--json", "--fresh"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    report = Path(json.loads(done.stdout.splitlines()[-1])["report"]).with_suffix(".json")
    return float(json.loads(report.read_text())["running_seconds"])


def read(output: Path) -> Any:
    return np.asarray(zarr.open_group(output, mode="r")["embedding"])


if __name__ == "__main__":
    main()
