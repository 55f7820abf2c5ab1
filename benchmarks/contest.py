"""One case: everybody prepares, takes turns, and is compared with what transformers computes of single rows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from benchmarks.alternation import Turn, order_round, summarise
from benchmarks.cases import Case
from benchmarks.environment import PYTHON, ROOT
from benchmarks.limits import measure_limits
from benchmarks.machine import CORES
from benchmarks.peers.peer import Peer
from benchmarks.work import Work

DASKINFER = Path(sys.executable).with_name("daskinfer")
Result = TypeVar("Result")
TOLERANCE = 1e-5
CHECKED_ROWS = 200
FIELDS = {"embed": "embedding", "score": "logprob", "classify": "scores"}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class Failed(Exception):
    """A contestant could not do the work; the message says why."""


class Contestant(Protocol):
    """Who can do the work of a case."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def what(self) -> str:
        """How it does the work."""

    def prepare(self) -> None:
        """Do what is done once and outside the clock."""

    def run(self) -> Turn:
        """Do the work."""

    def read_output(self) -> Any:
        """Return the result of every row; None where there is none to compare."""


@dataclass(frozen=True)
class Job:
    """daskinfer, by the command that a user would type."""

    name: str
    case: Case
    work: Work
    settings: tuple[tuple[str, Any], ...]
    what: str = "daskinfer run on local workers of one core"

    def prepare(self) -> None:
        """Publish the checkpoint by a job over the first rows, outside of the clock as a download is."""
        few = Path(self.work.folder, f"few{Path(self.work.input).suffix}")
        if self.work.task == "classify":
            few.mkdir(exist_ok=True)
            for path in self.work.read_rows()[:8]:
                shutil.copy(path, few)
        else:
            lines = Path(self.work.input).read_text().splitlines(keepends=True)[:8]
            few.write_text("".join(lines))
        self._call(str(few))

    def run(self) -> Turn:
        shutil.rmtree(Path(self.work.folder, "jobs"), ignore_errors=True)
        shutil.rmtree(self._output, ignore_errors=True)
        result, whole = self._call(self.work.input)
        report = json.loads(Path(result["report"]).with_suffix(".json").read_text())
        return Turn(whole, report["running_seconds"])

    def read_output(self) -> Any:
        import zarr

        return np.asarray(zarr.open_group(self._output, mode="r")[FIELDS[self.work.task]])

    @property
    def _output(self) -> Path:
        return Path(self.work.folder, "out.zarr")

    def _call(self, rows: str) -> tuple[dict[str, Any], float]:
        settings = {
            "name": self.name,
            "workspace": self.work.folder,
            "model.checkpoint": self.work.model,
            "input.url": rows,
            "input.partition_rows": self.work.partition_rows,
            "output.url": self._output,
            "cluster.local.workers": self.work.cores,
            **({} if self.work.task == "classify" else {"pipeline.microbatch_tokens": self.work.batch_tokens}),
            **dict(self.settings),
        }
        command = [str(DASKINFER), "run", str(ROOT / "recipes" / self.case.recipe), "--json", "--fresh"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        began = time.time()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        whole = time.time() - began
        if done.returncode:
            raise Failed(find_reason(done.stderr))
        return json.loads(done.stdout.splitlines()[-1]), whole


@dataclass(frozen=True)
class PeerProcess:
    """A peer, as a command in the peers' environment."""

    peer: Peer
    work: Work

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def what(self) -> str:
        return self.peer.what

    def prepare(self) -> None:
        self._call("prepare")

    def run(self) -> Turn:
        self.work.clear_marks()
        self._output.unlink(missing_ok=True)
        began = time.time()
        self._call("run")
        return Turn(time.time() - began, self.work.read_running())

    def read_output(self) -> Any:
        return np.load(self._output) if self._output.exists() else None

    @property
    def _output(self) -> Path:
        return Path(self.work.folder, "out.npy")

    def _call(self, step: str) -> None:
        work = self.work.save(Path(self.work.folder, "work.json"))
        threads = str(max(1, self.work.cores // self.peer.processes))
        environment = {
            **os.environ,
            **dict.fromkeys(_THREADS, threads),
            "PATH": os.pathsep.join([str(PYTHON.parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        command = [str(PYTHON), "-m", "benchmarks.peers", self.name, step, str(work), str(self._output)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        Path(self.work.folder, f"{step}.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise Failed(find_reason(done.stderr))


def find_reason(text: str) -> str:
    """Return the line of a command's standard error that says why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"error: |[\w.]+(Error|Exception|Exit|Failed)\b", line)]
    return (named or lines or ["it said nothing"])[-1][:300]


@dataclass(frozen=True)
class Contest:
    """A case with its rows and model made, and all who take part."""

    case: Case
    work: Work
    contestants: tuple[Contestant, ...]
    say: Callable[[str], None]

    def run(self, repeats: int, minutes: float) -> dict[str, Any]:
        """Return times, ratios and differences of as many rounds as fit; those who fail are named with the reason."""
        failed: dict[str, str] = {}
        turns: dict[str, list[Turn]] = {one.name: [] for one in self.contestants}
        self._try_all(failed, lambda one: one.prepare())
        began = time.monotonic()
        for number in range(repeats):
            if number and (time.monotonic() - began) * (number + 1) / number > 60 * minutes:
                break
            names = order_round([one.name for one in self.contestants], number)
            for name, turn in self._try_all(failed, lambda one: one.run(), names).items():
                turns[name].append(turn)
        names = [name for name in turns if name not in failed]
        base = self.contestants[0].name
        if base in failed:
            raise Failed(f"{base}: {failed[base]}")
        expected = read_expected(self.work)
        found = summarise({name: turns[name] for name in names}, base)
        for one in self.contestants:
            if one.name in found:
                found[one.name] |= {"what": one.what, "difference": compare(one.read_output(), expected)}
        limits = measure_limits(self.work, self.contestants[0].read_output().nbytes)
        rounds = len(turns[base])
        return {"repeats": rounds, "contestants": found, "skipped": failed, "limits": limits}

    def _try_all(
        self, failed: dict[str, str], act: Callable[[Contestant], Result], names: Sequence[str] = ()
    ) -> dict[str, Result]:
        """Return what everyone made of it that has not failed; those that fail now are added."""
        by_name = {one.name: one for one in self.contestants}
        results = {}
        for name in names or by_name:
            if name in failed:
                continue
            try:
                results[name] = act(by_name[name])
            except Failed as error:
                failed[name] = str(error)
                self.say(f"{self.case.name}: {name} is left out: {error}")
            else:
                self.say(f"{self.case.name}: {name} {results[name] or 'is prepared'}")
        return results


def open_contest(case: Case, folder: Path, rows: int, peers: Sequence[Peer], say: Callable[[str], None]) -> Contest:
    """Make the rows and the model of a case, and a folder for everybody."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = case.make_model(folder)
    input = case.write_rows(folder, rows)
    work = Work(case.task, str(model), str(input), "", CORES, case.partition_rows, case.batch_rows, case.batch_tokens)

    def give(name: str) -> Work:
        own = folder / name
        own.mkdir()
        return replace(work, folder=str(own))

    jobs = [Job(name, case, give(name), tuple(settings.items())) for name, settings in case.jobs.items()]
    return Contest(case, give("reference"), (*jobs, *(PeerProcess(peer, give(peer.name)) for peer in peers)), say)


def read_expected(work: Work) -> tuple[list[int], Any]:
    """Return some rows, and what transformers computes of each alone, without padding or batches."""
    from benchmarks.peers.plain import Computation, torch_forward

    rows = work.read_rows()
    some = [number * len(rows) // CHECKED_ROWS for number in range(min(CHECKED_ROWS, len(rows)))]
    computation = Computation(work, torch_forward(work, work.cores))
    return some, np.concatenate([computation([rows[row]]) for row in some])


def compare(found: Any, expected: tuple[list[int], Any]) -> float | None:
    """Return the largest difference, as a part of values above 1; None where there is nothing to compare."""
    if found is None:
        return None
    some, values = expected
    return float((np.abs(found[some] - values) / np.maximum(1, np.abs(values))).max())


def find_differences(result: dict[str, Any]) -> list[str]:
    """Return whose output differs from transformers' own."""
    return [
        f"{result['name']}: {name} differs from transformers by {one['difference']:.1e}, more than {TOLERANCE:.0e}"
        for name, one in result["contestants"].items()
        if one["difference"] is not None and not one["difference"] <= TOLERANCE
    ]
