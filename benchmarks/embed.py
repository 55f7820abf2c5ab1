"""The whole job against a hand-written PyTorch loop, on the same rows and cores, in one sitting.

Three contestants take turns (A B C A B C ...), so that a busy or throttled machine slows all of them alike:

- job: `daskinfer run`, two stages on two one-core workers, recipes/embed_text.yaml;
- loop: benchmarks/loop.py in one process on two cores, sorted over the whole corpus;
- loops: the same loop as two processes of one core, each over every other row.

`running` is from the moment the model is loaded until the last byte is written, `whole` from nothing to done. The
loops sort the whole corpus by length, the job only within a partition: that advantage is left to them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DASKINFER = Path(sys.executable).with_name("daskinfer")
CORES = 2
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Timing:
    """One repeat of one contestant, in seconds."""

    whole: float
    running: float

    @property
    def startup(self) -> float:
        return self.whole - self.running


@dataclass(frozen=True)
class Bench:
    """What all contestants share."""

    work: Path
    model: Path
    rows: Path
    tokens: int
    transport: str

    def run_job(self) -> Timing:
        output = self.work / "job.zarr"
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(self.work / "jobs", ignore_errors=True)
        result, whole = self._daskinfer(output, self.rows)
        report = json.loads(Path(result["report"]).with_suffix(".json").read_text())
        return Timing(whole, report["running_seconds"])

    def warm_up(self) -> None:
        """Publish the checkpoint, outside of the clock as its download is, by a job over the first rows."""
        few = self.work / "few.jsonl"
        few.write_text("".join(self.rows.read_text().splitlines(keepends=True)[:8]))
        self._daskinfer(self.work / "few.zarr", few)

    def _daskinfer(self, output: Path, rows: Path) -> tuple[dict[str, Any], float]:
        settings = {
            "workspace": self.work,
            "model.checkpoint": self.model,
            "input.url": rows,
            "output.url": output,
            "pipeline.microbatch_tokens": self.tokens,
            "pipeline.activations.transport": self.transport,
        }
        command: list[Any] = [DASKINFER, "run", ROOT / "recipes/embed_text.yaml", "--json"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        started = time.time()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1]), time.time() - started

    def run_loop(self) -> Timing:
        return self._run_loops(1)

    def run_loops(self) -> Timing:
        return self._run_loops(CORES)

    def _run_loops(self, processes: int) -> Timing:
        started = time.time()
        running = []
        for part in range(processes):
            output = self.work / f"loop-{part}-of-{processes}.npy"
            command: list[Any] = [sys.executable, ROOT / "benchmarks/loop.py", self.model, self.rows, output]
            command += ["--threads", str(CORES // processes), "--tokens", str(self.tokens)]
            command += ["--part", f"{part}/{processes}"]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        stamps = [json.loads(process.communicate()[0]) for process in running]
        done = max(stamp["done"] for stamp in stamps)
        return Timing(done - started, done - min(stamp["ready"] for stamp in stamps))

    def compare_outputs(self) -> float:
        """Return the largest difference between the job's vectors and the loop's."""
        job = np.asarray(zarr.open_group(self.work / "job.zarr", mode="r")["embedding"])
        return float(np.abs(job - np.load(self.work / "loop-0-of-1.npy")).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input", type=Path, default=Path("data/glosses-all.jsonl"), help="jsonl with id and text")
    parser.add_argument("--model", type=Path, help="checkpoint folder; all-MiniLM-L6-v2 unless told")
    parser.add_argument("--microbatch-tokens", type=int, default=2048, help="the same for every contestant")
    parser.add_argument("--transport", default="zarr", choices=["zarr", "direct", "auto"])
    parser.add_argument("--work", type=Path, default=Path("work/bench-embed"))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--write", action="store_true", help="keep it as benchmarks/results/embed-DATE.json")
    options = parser.parse_args()
    if not options.input.is_file():
        parser.error(f"no file {options.input}; python recipes/glosses.py {options.input} --rows all makes it")
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    model = options.model or find_minilm()
    rows = spread_lines(options.input, options.rows, options.work / "rows.jsonl")
    bench = Bench(options.work.resolve(), model.resolve(), rows.resolve(), options.microbatch_tokens, options.transport)
    bench.warm_up()
    contestants = {"job": bench.run_job, "loop": bench.run_loop, "loops": bench.run_loops}
    timings = take_turns(contestants, options.repeats)
    difference = bench.compare_outputs()
    result = summarise(timings, options.rows, difference) | {"settings": vars(options), "machine": describe_machine()}
    text = json.dumps(result, indent=None if options.json else 1, default=str)
    if options.write:
        target = ROOT / "benchmarks/results" / f"embed-{datetime.now(UTC):%Y-%m-%d}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + "\n")
    print(text) if options.json else show(result)
    if difference > TOLERANCE:
        sys.exit(f"the job's vectors differ from the loop's by {difference:.2e}, more than {TOLERANCE:.0e}")


def find_minilm() -> Path:
    """Return the folder of the demo's checkpoint."""
    script = ROOT / "recipes/minilm.py"
    return Path(subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def spread_lines(source: Path, count: int, target: Path) -> Path:
    """Write `count` lines of `source`, at even distances, to `target`."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < count:
        sys.exit(f"{source} has {len(lines)} rows, fewer than {count}")
    target.write_text("".join(lines[index * len(lines) // count] for index in range(count)), encoding="utf-8")
    return target


def take_turns(contestants: dict[str, Callable[[], Timing]], repeats: int) -> dict[str, list[Timing]]:
    """Run everyone once, then everyone again, and so on."""
    timings: dict[str, list[Timing]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name, run in contestants.items():
            timings[name].append(run())
            last = timings[name][-1]
            print(f"{repeat + 1}/{repeats} {name}: {last.running:.1f} s of {last.whole:.1f} s", file=sys.stderr)
    return timings


def summarise(timings: dict[str, list[Timing]], rows: int, difference: float) -> dict[str, Any]:
    """Return medians, every repeat, and the job's ratios to each loop."""
    medians = {
        name: {part: statistics.median(getattr(one, part) for one in ones) for part in ("whole", "running", "startup")}
        for name, ones in timings.items()
    }
    ratios = {
        f"job/{name}": {part: medians["job"][part] / medians[name][part] for part in ("whole", "running")}
        for name in timings
        if name != "job"
    }
    repeats = {name: [asdict(one) for one in ones] for name, ones in timings.items()}
    return {"rows": rows, "medians": medians, "ratios": ratios, "largest_difference": difference, "repeats": repeats}


def describe_machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    libraries = {name: version(name) for name in ("daskinfer", "torch", "transformers", "dask", "zarr")}
    return {"cpu": cpu, "cores used": str(CORES), "python": platform.python_version(), **libraries}


def show(result: dict[str, Any]) -> None:
    """Print the medians as a table."""
    table = Table(title=f"{result['rows']} rows, median seconds")
    for column in ("", "start-up", "running", "whole", "rows/s running"):
        table.add_column(column, justify="right" if column else "left")
    for name, median in result["medians"].items():
        rate = f"{result['rows'] / median['running']:,.0f}"
        table.add_row(name, *(f"{median[part]:.1f}" for part in ("startup", "running", "whole")), rate)
    console = Console()
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio['running']:.3f} running, {ratio['whole']:.3f} whole", highlight=False)
    console.print(f"largest difference between the vectors: {result['largest_difference']:.1e}", highlight=False)


if __name__ == "__main__":
    main()
