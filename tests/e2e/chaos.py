"""A job under fire: a cluster of processes, faults drawn from a seed, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from distributed import Client
from distributed.utils import open_port

from daskinfer import api
from daskinfer.testing.fixtures.workers import find_workers
from tests.e2e.chaosworker import BREAK_DEVICE, CUT_NETWORK, PAUSE
from tests.e2e.conftest import Bench, daskinfer, data_bytes

WORKERS, STAGES, ROWS, PARTITION = 4, 3, 960, 32
MOST_RUNS = 8
SECONDS = 480.0

KINDS = (
    "kill-worker",
    "kill-worker",
    "freeze-worker",
    "pause-worker",
    "break-device",
    "kill-driver",
    "lose-scheduler",
    "move-alias",
)
"""What may happen, worker deaths twice as often as the rest; stores misbehave all the time."""
KINDS_OF = {"zarr": ("damage-activation",), "direct": ("cut-network",)}
"""What may happen besides, by the way that activations move."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong as soon as a share of the partitions is committed."""

    kind: str
    after: int
    """Committed partitions."""
    choice: int
    """Which worker, or which file."""


def draw_faults(seed: int, count: int, transport: str) -> list[Fault]:
    """Return the faults of a schedule in the order in which they come."""
    source = random.Random(seed)
    moments = sorted(source.randrange(1, ROWS // PARTITION - 2) for _ in range(count))
    kinds = KINDS + KINDS_OF[transport]
    return [Fault(source.choice(kinds), moment, source.randrange(10**6)) for moment in moments]


class Cluster:
    """A scheduler and four nannied workers in processes of their own, on stores that misbehave.

    Parameters
    ----------
    folder
        For what the workers write down.
    seed
        Of their stores' faults.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.port = open_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.diary = folder / "diary"
        self.diary.mkdir(exist_ok=True)
        self._folder = folder
        self._seed = seed
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        environment = {
            **os.environ,
            "CHAOS_SEED": str(self._seed),
            "CHAOS_DIARY": str(self.diary),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        scheduler = ("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        workers = (
            *("worker", self.address, "--host", "127.0.0.1", "--nworkers", str(WORKERS), "--nthreads", "1"),
            *("--resources", "GPU=1", "--memory-limit", "0", "--no-dashboard"),
            *("--preload-nanny", "daskinfer.runtime.cluster.forking"),
            *("--preload", str(Path(__file__).with_name("chaosworker.py"))),
        )
        for words in (scheduler, workers):
            command = [sys.executable, "-m", "dask", *words]
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def await_workers(self) -> None:
        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(WORKERS, timeout=60)

    def workers(self) -> list[psutil.Process]:
        return find_workers(self._processes[1].pid)

    def restart(self) -> None:
        """Lose the scheduler; whatever runs the cluster starts it again, and the workers that ended with it."""
        self.stop()
        self.start()

    def stop(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def computed(self) -> Counter[str]:
        """Return how often every stage of every microbatch was computed."""
        return Counter(line for path in self.diary.iterdir() for line in path.read_text().splitlines())


@contextmanager
def open_processes(folder: Path, seed: int) -> Iterator[Cluster]:
    """Run a cluster within the context."""
    cluster = Cluster(folder, seed)
    cluster.start()
    try:
        cluster.await_workers()
        yield cluster
    finally:
        cluster.stop()


@dataclass
class Outcome:
    """What a schedule did to a job."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    """From each fault to the next commit."""
    recomputed: float = 0.0
    """Share of the stage passes that were computed more than once."""
    incidents: Counter[str] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)
    """What drivers said was wrong."""


class Storm:
    """One job, run to its seal whatever happens to it.

    Parameters
    ----------
    bench
        Its folder, with the recipe written down.
    cluster
        Where it runs.
    name
        Of its output.
    transport
        How its activations move.
    """

    def __init__(self, bench: Bench, cluster: Cluster, name: str, transport: str) -> None:
        self.output = bench.folder / name
        self._transport = transport
        self._bench = bench
        self._cluster = cluster
        self._outcome = Outcome()
        self._frozen: list[psutil.Process] = []

    def rage(self, faults: list[Fault]) -> Outcome:
        """Run the job under these faults; assert that it ends, and return what happened."""
        deadline = time.monotonic() + SECONDS
        waiting, hit = list(faults), None
        for path in self._cluster.diary.iterdir():
            path.unlink()
        self._move_alias("v1")  # the version of the undisturbed run
        driver = self._start()
        try:
            while True:
                assert time.monotonic() < deadline, f"still running after {SECONDS:.0f} s: {self._tell()}"
                committed = self._count()
                if hit is not None and committed > hit[1]:
                    self._outcome.recovery_seconds.append(time.monotonic() - hit[0])
                    hit = None
                if waiting and committed >= waiting[0].after and hit is None:
                    fault = waiting.pop(0)
                    self._outcome.faults[fault.kind] += 1
                    self._do(fault, driver)
                    hit = (time.monotonic(), committed)
                if driver.poll() is not None:
                    report = self._read_report(driver)
                    if driver.returncode == 0:
                        break
                    # 3: the cluster is there again, and its workers are not yet.
                    assert driver.returncode in (1, 3, -signal.SIGKILL), report
                    assert self._outcome.runs < MOST_RUNS, report
                    driver = self._start()
                time.sleep(0.02)
        finally:
            self._thaw()
            if driver.poll() is None:
                driver.kill()
                driver.communicate()
        passes = self._cluster.computed()
        self._outcome.recomputed = passes.total() / len(passes) - 1
        return self._outcome

    def check(self, calm: Path, rejected: int) -> None:
        """Assert that the output is what an undisturbed run would have written, and nothing else is left."""
        manifest = json.loads((self.output / "_MANIFEST.json").read_text())
        found, wanted = data_bytes(self.output), data_bytes(calm)
        differing = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
        assert not differing, f"{self.output}: {sorted(differing)}"
        assert (manifest["rows_out"], manifest["rows_quarantined"]) == (ROWS - rejected, rejected)
        records = [json.loads(path.read_text()) for path in self.output.glob("_daskinfer/commits/*/*.json")]
        assert sorted(record["partition"] for record in records) == list(range(ROWS // PARTITION))
        assert {record["snapshot"] for record in records} == {manifest["snapshot"]}
        assert manifest["snapshots"] == [manifest["snapshot"]]
        assert not any((self._bench.folder / "work").glob("activations/*"))

    def _start(self) -> subprocess.Popen[str]:
        self._outcome.runs += 1
        settings = {
            "name": self.output.stem,
            "output.url": self.output,
            "pipeline.activations.transport": self._transport,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return daskinfer("run", "recipe.yaml", *words, "--json", cwd=self._bench.folder)

    def _count(self) -> int:
        return sum(1 for _ in self.output.glob("_daskinfer/commits/*/*.json"))

    def _tell(self) -> str:
        """Return what has happened so far, and what the job's drivers wrote down of it."""
        journals = sorted(self._bench.folder.glob(f"work/jobs/{self.output.stem}-*/journal/**/*.jsonl"))
        return "\n".join([str(self._outcome), *(path.read_text() for path in journals)])

    def _read_report(self, driver: subprocess.Popen[str]) -> Any:
        out, err = driver.communicate()
        if driver.returncode == -signal.SIGKILL:
            return None
        url = json.loads(out.splitlines()[-1])["report"]
        if url is not None:  # it got as far as to have one
            report = json.loads(Path(url).with_suffix(".json").read_text())
            self._outcome.incidents.update(incident["kind"] for incident in report["incidents"])
        self._outcome.ends += [line for line in err.splitlines() if "rror" in line]
        return err

    def _do(self, fault: Fault, driver: subprocess.Popen[str]) -> None:
        acts: dict[str, Callable[[], object]] = {
            "kill-worker": lambda: self._signal(fault.choice, signal.SIGKILL),
            "freeze-worker": lambda: self._freeze(fault.choice),
            "pause-worker": lambda: self._signal(fault.choice, PAUSE),
            "break-device": lambda: self._signal(fault.choice, BREAK_DEVICE),
            "cut-network": lambda: self._signal(fault.choice, CUT_NETWORK),
            "kill-driver": driver.kill,
            "lose-scheduler": self._cluster.restart,
            "damage-activation": lambda: self._damage(fault.choice),
            "move-alias": lambda: self._move_alias(f"v{fault.choice % 2 + 1}"),
        }
        acts[fault.kind]()

    def _signal(self, choice: int, number: signal.Signals) -> psutil.Process | None:
        workers = self._cluster.workers()
        if not workers:
            return None  # all of them are being restarted
        victim = workers[choice % len(workers)]
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
        return victim

    def _freeze(self, choice: int) -> None:
        self._thaw()
        if victim := self._signal(choice, signal.SIGSTOP):
            self._frozen.append(victim)

    def _thaw(self) -> None:
        while self._frozen:
            with suppress(psutil.NoSuchProcess):
                self._frozen.pop().send_signal(signal.SIGCONT)

    def _damage(self, choice: int) -> None:
        chunks = sorted(path for path in self._bench.folder.glob("work/activations/**/c/**/*") if path.is_file())
        if chunks:
            chunk = chunks[choice % len(chunks)]
            with suppress(FileNotFoundError):
                data = bytearray(chunk.read_bytes())
                data[len(data) // 2] ^= 1
                chunk.write_bytes(data)

    def _move_alias(self, version: str) -> None:
        api.set_alias("tiny", "prod", version, registry=str(self._bench.folder / "work/registry"))
