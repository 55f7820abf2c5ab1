"""Jobs and garbage collection at the same registry: what a job works with is never deleted under it unnoticed."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from daskinfer import api
from daskinfer.errors import SnapshotGone
from daskinfer.ids import shorten
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.collection.retention import Retention
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.command import call
from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench, run
from tests.e2e.faults import patched_workers

pytestmark = [pytest.mark.slow, pytest.mark.late]

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, PARTITION = 640, 32
KEEP_NOTHING = ("--keep-versions", "0", "--keep-days", "0")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    """`tiny@v1` is what the recipe runs, and nothing but its jobs keeps it."""
    bench = make_bench(tmp_path, tiny_model, ROWS)
    api.publish("tiny", str(tiny_model), registry=str(tmp_path / "work/registry"), alias="prod", dtype="bfloat16")
    return bench


def hold(patch: pytest.MonkeyPatch, go: str, name: str, after: int) -> None:
    """Let a worker wait before it does something for a job, once it has done so many, until a file is there."""
    from daskinfer.graphs import tasks

    real, made = getattr(tasks, name), itertools.count()

    def call(*words: Any) -> Any:
        number = next(made)
        while number >= after and not Path(go).exists():
            time.sleep(0.02)
        return real(*words)

    patch.setattr(tasks, name, call)


@contextmanager
def held(bench: Bench, scheduler: str, name: str, after: int) -> Iterator[Path]:
    """Hold all workers so that a job cannot get further than that; yield the file that lets them go on."""
    go = bench.folder / "go"
    with patched_workers(scheduler, hold, str(go), name, after):
        try:
            yield go
        finally:
            go.touch()


def start_and_pause(bench: Bench, scheduler: str, commits: int) -> tuple[subprocess.Popen[str], Path]:
    """Start the job, and stop its driver after so many commits; return it and its lock."""
    bench.write_recipe(
        model__checkpoint="tiny@v1",
        input__partition_rows=PARTITION,
        cluster__address=scheduler,
        placement__requires={"TWO": 1},
    )
    job = daskinfer("run", "recipe.yaml", "--json", cwd=bench.folder)
    deadline = time.monotonic() + 150
    while True:
        locks = list(bench.folder.glob("work/registry/locks/*/*.json"))
        if locks and len(list(bench.folder.glob("out.zarr/_daskinfer/commits/*/*.json"))) >= commits:
            break
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    job.send_signal(signal.SIGSTOP)
    while psutil.Process(job.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.005)
    return job, locks[0]


def collect_garbage(bench: Bench, *words: str) -> dict[str, Any]:
    return call("checkpoint", "gc", *KEEP_NOTHING, *words, "--json", cwd=bench.folder).json


def go_on(job: subprocess.Popen[str]) -> tuple[int, str]:
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=300)
    return job.returncode, err


def test_a_job_that_was_given_up_while_it_was_paused(bench: Bench, scheduler: str) -> None:
    run(bench.recipe("calm.zarr", model__checkpoint="tiny@v1", input__partition_rows=PARTITION), scheduler)
    calm = data_bytes(bench.folder / "calm.zarr")
    with held(bench, scheduler, "commit_partition", after=2) as go:
        job, lock = start_and_pause(bench, scheduler, commits=2)
        assert collect_garbage(bench)["deleted"] == []
        (row,) = call("checkpoint", "locks", "tiny@v1", "--json", cwd=bench.folder).json["locks"]
        assert (row["job"], row["purpose"], row["versions"]) == (lock.stem, "run", ["tiny v1"])
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"ttl_seconds": 1}))
        (gone,) = collect_garbage(bench, "--wait")["deleted"]
        assert gone["versions"] == ["tiny v1"]
        assert not list(bench.folder.glob("work/registry/locks/*/*"))
        go.touch()
        code, err = go_on(job)
    written = data_bytes(bench.folder / "out.zarr")
    # Its workers may have had all they needed. What it wrote is right, and a job that stops says why.
    if code == 0:
        assert written == calm
    else:
        assert code == 1 and "was deleted while" in err and "took the job for dead" in err, err
        assert written.items() <= calm.items()
        again = call("run", "recipe.yaml", "--json", cwd=bench.folder)
        assert again.code == 1 and "is swept" in again.err


def test_a_job_that_was_given_up_before_it_read_its_weights(bench: Bench, scheduler: str) -> None:
    with held(bench, scheduler, "load_shard", after=0):
        job, lock = start_and_pause(bench, scheduler, commits=0)
        (gone,) = collect_garbage(bench, "--assume-dead", lock.stem)["deleted"]
        assert gone["versions"] == ["tiny v1"]
        code, err = go_on(job)
    assert code == 1
    assert shorten(gone["snapshot"]) in err and ("was deleted" in err or "is swept" in err), err
    assert not list(bench.folder.glob("out.zarr/_daskinfer/commits/*/*.json"))


def test_a_worker_tells_a_deleted_snapshot_from_a_damaged_one(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No worker has weights that no other test publishes.
    own = make_tiny_bert(bench.folder / "own", layers=4, seed=106)
    api.publish("own", str(own), registry=str(bench.folder / "work/registry"))

    def take_and_lose(registry: Registry, snapshot: str, job: str) -> SnapshotLock:
        lock = take(registry, snapshot, job)
        report = collect(registry, Retention(keep_versions=0, keep_days=0), assume_dead=[job])
        assert snapshot in [row.snapshot for row in report.deleted]
        # As for a worker that has read the manifest before.
        Path(registry.manifest_url(snapshot)).write_bytes(lock.manifest.encode())
        return lock

    take = locks.take
    monkeypatch.setattr(locks, "take", take_and_lose)
    monkeypatch.setattr(SnapshotLock, "check", lambda lock: None)
    with pytest.raises(SnapshotGone, match="could not be loaded") as gone:
        run(bench.recipe(model__checkpoint="own@v1"), scheduler)
    assert "was deleted from registry" in gone.value.message and "while it was read" in gone.value.message


def test_a_stopped_job_keeps_its_snapshot(bench: Bench, scheduler: str) -> None:
    with held(bench, scheduler, "commit_partition", after=2):
        job, _ = start_and_pause(bench, scheduler, commits=2)
        job.kill()
        job.communicate(timeout=120)
    assert collect_garbage(bench)["deleted"] == []
    ended = call("run", "recipe.yaml", "--json", cwd=bench.folder)
    assert (ended.code, ended.json["rows_out"]) == (0, ROWS)
    (gone,) = collect_garbage(bench)["deleted"]
    assert gone["snapshot"] == ended.json["snapshot"]
