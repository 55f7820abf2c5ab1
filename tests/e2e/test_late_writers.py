"""Whole programs: a worker stops in the midst of writing, its driver dies, others take over and end, and it wakes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from daskinfer import api
from daskinfer.ids import make_nonce
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.objects.filesystem import find_files, read_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.testing.models.tinymodels import make_tiny_bert
from daskinfer.testing.stress.campaigns import campaign_size
from tests.e2e.conftest import Bench, daskinfer, make_bench
from tests.e2e.sleepyworker import ORDER, PLANT, done_place

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.timeout(campaign_size(600, 3600))]

SCHEDULES = campaign_size(5, 60)
MOST_CALLS = 160
"""Of one worker, in a job of 19 partitions."""
BAD = (5, 100, 299)
FORMATS = ("zarr", "parquet", "jsonl")
KINDS = ("fresh", "resume", "retry", "retry then fresh", "join")


@dataclass(eq=False)
class Processes:
    """A scheduler and two workers, without nannies."""

    folder: Path
    started: list[psutil.Popen] = field(default_factory=list)
    address: str = ""

    @property
    def order(self) -> Path:
        return self.folder / "order"

    def start(self, preload: Path | None, plant: bool) -> None:
        place = self.folder / "scheduler.json"
        loopback = ("--host", "127.0.0.1", "--no-dashboard")
        self._begin("scheduler", *loopback, "--port", "0", "--scheduler-file", str(place), plant=plant)
        while not place.exists() or not place.read_text().strip():
            time.sleep(0.05)
        self.address = json.loads(place.read_text())["address"]
        words = ["--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--resources", "GPU=1"]
        words += ["--preload", str(preload)] if preload else []
        for _ in range(2):
            self._begin("worker", self.address, *loopback, *words, plant=plant)
        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(2, timeout=120)

    def _begin(self, *words: str, plant: bool) -> None:
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", ORDER: str(self.order), PLANT: "1" if plant else ""}
        command, quiet = [sys.executable, "-m", "dask", *words], subprocess.DEVNULL
        self.started.append(psutil.Popen(command, cwd=self.folder, env=environment, stdout=quiet, stderr=quiet))

    def await_rest(self) -> None:
        """Wait until no worker computes anything."""
        with Client(self.address, timeout=60) as client:
            deadline = time.monotonic() + 150
            while any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        for process in self.started:
            process.kill()
        psutil.wait_procs(self.started, timeout=30)


@contextmanager
def processes(folder: Path, preload: Path | None = None, plant: bool = False) -> Iterator[Processes]:
    folder.mkdir()
    cluster = Processes(folder)
    try:
        cluster.start(preload, plant)
        yield cluster
    finally:
        cluster.stop()


@dataclass(frozen=True, eq=False)
class Scene:
    """A folder with two versions of a model, the workers that fall asleep, and those that take over."""

    bench: Bench
    s3: str
    victims: Processes
    rescuers: Processes

    def recipe(self, output: str, version: str, rows: Path, victim: bool = False) -> Recipe:
        return self.bench.recipe(
            model__checkpoint=f"tiny@{version}",
            input={"url": str(rows), "partition_rows": 16},
            output={"url": output, "keep": ["id"]},
            pipeline={"stages": 1, "microbatch_tokens": 512},
            errors={"max_rows": len(BAD)},
            cluster={"address": (self.victims if victim else self.rescuers).address},
        )

    def write_rows(self, name: str, bad: bool) -> Path:
        rows = (self.bench.folder / "in.jsonl").read_text().splitlines()
        if bad:
            rows = [json.dumps({"id": "bad", "text": None}) if n in BAD else row for n, row in enumerate(rows)]
        path = self.bench.folder / name
        path.write_text("\n".join(rows))
        return path

    def retry(self, job: str) -> str:
        """Retry a job's bad rows; return the job."""
        api.retry(job, str(self.bench.folder / "work"), overrides=[f"cluster.address={self.rescuers.address}"])
        return job

    @cache  # noqa: B019 - it ends with the module
    def calm(self, format: str, version: str, retried: bool) -> dict[str, bytes]:
        """Return the output of a job that nothing disturbs."""
        name = f"calm-{version}-{retried}"
        output, rows = str(self.bench.folder / f"{name}.{format}"), self.write_rows(f"{name}-{format}.jsonl", retried)
        report = api.run(self.recipe(output, version, rows))
        if retried:
            self.write_rows(rows.name, False)
            self.retry(report.job)
        return data_of(output)


def data_of(url: str) -> dict[str, bytes]:
    """Return what readers see of an output, but what names the job."""
    own = ("_daskinfer/", "_MANIFEST.json", "zarr.json", "_metadata")
    found = {name: read_bytes(join_url(url, name)) for name in find_files(url) if not any(part in name for part in own)}
    return {name: _without_names(data) if name.endswith(".parquet") else data for name, data in found.items()}


def _without_names(data: bytes) -> bytes:
    """Return the rows of a parquet file, whose metadata name the job."""
    table = pq.read_table(pa.BufferReader(data)).replace_schema_metadata()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


@contextmanager
def set_scene(folder: Path, model: Path, s3: str, plant: bool = False) -> Iterator[Scene]:
    bench = make_bench(folder / "bench", model, 300)
    other = make_tiny_bert(folder / "other", layers=4, seed=1)
    api.publish("tiny", str(other), registry=str(bench.folder / "work/registry"))
    with ExitStack() as stack:
        preload = Path(__file__).with_name("sleepyworker.py")
        victims = stack.enter_context(processes(folder / "victims", preload, plant))
        yield Scene(bench, s3, victims, stack.enter_context(processes(folder / "rescuers")))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, s3_url: str) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("late")
    (folder / "bench").mkdir()
    with set_scene(folder, tiny_model, f"{s3_url}/late-{make_nonce()}") as scene:
        yield scene


@dataclass(frozen=True)
class Sleep:
    """Where a worker stops, and when it wakes."""

    step: int
    """Calls of the output that it makes before."""
    early: bool = False
    """It wakes when whoever took over has committed something; else when that has ended."""
    needle: str = ""
    """What the path of the call contains, after the name of the output."""
    function: str = "any"


def fall_asleep(scene: Scene, sleep: Sleep, output: str, words: list[str]) -> int | None:
    """Run a command until a worker stops in the midst of it, and kill it; return the worker. None where it ends before."""
    order = scene.victims.order
    done_place(order).unlink(missing_ok=True)
    order.write_text(f"{make_nonce()} {sleep.step} {output.rpartition('/')[2]}{sleep.needle} {sleep.function}")
    driver = daskinfer(*words, cwd=scene.bench.folder)
    try:
        while driver.poll() is None and not done_place(order).exists():
            time.sleep(0.02)
        order.unlink(missing_ok=True)
        if not done_place(order).exists():
            assert driver.returncode == 0, driver.communicate()
            return None
        return int(done_place(order).read_text())
    finally:
        driver.kill()
        driver.communicate()


def play(scene: Scene, kind: str, format: str, url: str, sleep: Sleep) -> bool:
    """Play one schedule; return whether a worker fell asleep. The output is that of a job that nothing disturbs."""
    name = url.rpartition("/")[2]
    job, retried = "", kind.startswith("retry")
    rows = scene.write_rows(f"{name}.jsonl", retried)
    own, rescue = scene.recipe(url, "v1", rows, victim=True), scene.recipe(url, "v1", rows)
    path = scene.bench.folder / f"{name}.yaml"
    path.write_text(json.dumps(own.model_dump(mode="json", exclude_none=True)))
    words = ["run", path.name, *(["--join"] if kind == "join" else [])]
    if retried:
        job = api.run(rescue).job
        scene.write_rows(rows.name, False)
        words = ["retry", job, "--set", f"cluster.address={scene.victims.address}"]
    version = "v2" if kind.endswith("fresh") else "v1"

    def take_over() -> str:
        if kind.endswith("fresh"):
            return api.run(scene.recipe(url, version, rows), fresh=True).job
        return scene.retry(job) if retried else api.run(rescue).job

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(join_in, rescue) if kind == "join" else None
        worker = fall_asleep(scene, sleep, url, words)
        before = commits_of(url)
        try:
            other = other or pool.submit(take_over)
            while not other.done() and not (sleep.early and commits_of(url) - before):
                time.sleep(0.1)  # a small store has more to do than to list
        finally:
            if worker is not None:
                os.kill(worker, signal.SIGCONT)
        last = other.result()
    scene.victims.await_rest()
    assert data_of(url) == scene.calm(format, version, retried and version == "v1"), (kind, format, sleep)
    assert api.verify_output(last, str(scene.bench.folder / "work")).damaged == ()
    if not retried:
        assert api.run(scene.recipe(url, version, rows)).job == last  # at once: it is done
    return worker is not None


def commits_of(url: str) -> set[str]:
    """Return the commit records of an output, of whatever job."""
    return {name for name in find_files(url) if "commits/" in name}


def join_in(recipe: Recipe) -> str:
    """Join a job, as soon as somebody has begun it."""
    deadline = time.monotonic() + 150
    while not find_files(recipe.output.url):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return api.run(recipe, join=True).job


def draw(seed: int) -> tuple[str, str, bool, Sleep]:
    source = random.Random(seed)
    kind, format = KINDS[seed % len(KINDS)], FORMATS[seed % len(FORMATS)]
    return kind, format, seed % 4 == 3, Sleep(source.randrange(MOST_CALLS), early=source.random() < 0.5)


@pytest.fixture(scope="module")
def slept() -> list[bool]:
    """Of every schedule, whether a worker fell asleep."""
    return []


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_whoever_wakes_up_late_changes_nothing(scene: Scene, slept: list[bool], seed: int) -> None:
    kind, format, remote, sleep = draw(seed)
    name = f"late-{seed}.{format}"
    url = join_url(scene.s3, name) if remote else str(scene.bench.folder / name)
    slept.append(play(scene, kind, format, url, sleep))
    print(seed, kind, format, "s3" if remote else "local", sleep, "asleep" if slept[-1] else "awake")


def test_most_of_them_slept(slept: list[bool]) -> None:
    assert sum(slept) >= len(slept) // 2


def test_whoever_only_looks_before_he_writes_is_found(tmp_path: Path, tiny_model: Path, s3_url: str) -> None:
    (tmp_path / "bench").mkdir()
    with set_scene(tmp_path, tiny_model, s3_url, plant=True) as scene:
        for step in range(3, 9):
            # The owner has been looked at, and nothing is there yet that whoever takes over could sweep.
            sleep = Sleep(step, needle="$", function="mkdir")
            try:
                play(scene, "fresh", "parquet", str(scene.bench.folder / f"planted-{step}.parquet"), sleep)
            except AssertionError:
                return
    pytest.fail("whoever only looks before he writes was not found")
