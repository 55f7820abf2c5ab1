"""Faults that leave a process alive: each is told apart, dealt with and named, and the output is as if nothing had been."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from daskinfer.errors import StorageError, StorageRefused
from daskinfer.runtime.cluster.forking import fork_workers
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Incident, Report
from tests.e2e.conftest import Bench, data_bytes, make_bench, run
from tests.e2e.faults import commits, interrupt, once, patched_workers

pytestmark = [
    pytest.mark.late,
    pytest.mark.campaign,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("every_event_is_told"),
]

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, PARTITION = 960, 32


@pytest.fixture(scope="module")
def fleet() -> Iterator[str]:
    """The address of three workers that may come to harm; `run` finds two of them, or all three."""
    options = {
        "nthreads": 1,
        "memory_limit": 0,
        "env": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
    }
    tags = ({"TWO": 1, "THREE": 1}, {"TWO": 1, "THREE": 1}, {"THREE": 1})
    workers = {
        number: {"cls": Nanny, "options": {**options, "resources": {"GPU": 1} | tags}}
        for number, tags in enumerate(tags)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}}
    with dask.config.set(fork_workers()), SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def whole(fleet: str) -> str:
    """The fleet when all of it is there."""
    with Client(fleet) as client:
        client.wait_for_workers(3, timeout=120)
    return fleet


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, fleet: str) -> Bench:
    """A job of 30 partitions, and `calm.zarr`: what it writes when nothing disturbs it."""
    bench = make_bench(tmp_path_factory.mktemp("recovery"), tiny_model, ROWS)
    run(small(bench, "calm.zarr"), fleet)
    return bench


def small(bench: Bench, name: str, **changes: Any) -> Any:
    return bench.recipe(name, input__partition_rows=PARTITION, **changes)


def assert_calm(bench: Bench, name: str) -> None:
    assert data_bytes(bench.folder / name) == data_bytes(bench.folder / "calm.zarr")
    assert len(commits(bench.folder / name)) == ROWS // PARTITION


def only(report: Report, kind: str) -> Incident:
    (incident,) = [incident for incident in report.incidents if incident.kind == kind]
    return incident


def stop_worker(scheduler: str, stage: int) -> None:
    """Freeze the process that holds a stage, for good."""
    with Client(scheduler) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        (holder,) = [
            address
            for address, worker in workers.items()
            if any(tag.endswith(f"/stage-{stage}") and amount for tag, amount in worker["resources"].items())
        ]
        os.kill(client.run(os.getpid, workers=[holder])[holder], signal.SIGSTOP)


def test_a_frozen_worker_is_replaced_by_the_spare(bench: Bench, whole: str) -> None:
    # The plan is that of two workers; the third is a spare, or helps a stage where that pays.
    interrupt(small(bench, "frozen.zarr"), whole)
    recipe = small(bench, "frozen.zarr", recovery__frozen=8)
    report = run(recipe, whole, workers=3, watch=once(64, lambda: stop_worker(whole, stage=1)))
    incident = only(report, "worker-frozen")
    assert "stage 1" in incident.detail
    assert incident.detect_seconds is not None and incident.detect_seconds >= 8
    assert incident.recover_seconds is not None and incident.recover_seconds > 0
    assert report.counters["workers_lost"] == 1
    assert_calm(bench, "frozen.zarr")


def test_a_frozen_worker_without_a_spare_comes_back_by_its_nanny(bench: Bench, whole: str) -> None:
    recipe = small(bench, "alone.zarr", recovery__frozen=8)
    report = run(recipe, whole, watch=once(64, lambda: stop_worker(whole, stage=0)))
    incident = only(report, "worker-frozen")
    assert "stage 0" in incident.detail
    assert incident.recover_seconds is not None
    assert_calm(bench, "alone.zarr")


def break_device(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let the third microbatch of this process, and all that follow, fail as they do on a GPU that has failed."""
    import torch

    from daskinfer.models.splitting.skeleton import Skeleton

    compute = Skeleton.run
    left = [after]

    def run(self: Any, inputs: Any, received: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return compute(self, inputs, received)

    patch.setattr(Skeleton, "run", run)


def test_a_failed_device_costs_a_worker_and_nothing_else(bench: Bench, whole: str) -> None:
    with patched_workers(whole, break_device, 3, only=1):
        report = run(small(bench, "device.zarr"), whole)
    incident = only(report, "device-failed")
    assert "an illegal memory access was encountered" in incident.detail
    assert incident.recover_seconds is not None
    assert report.counters["workers_lost"] == 1
    assert report.counters["microbatches_recomputed"] >= 1
    assert_calm(bench, "device.zarr")


def refuse(patch: pytest.MonkeyPatch, flag: str, code: int) -> None:
    """Let this process's store refuse reads and writes of rows while a file is there."""
    from pathlib import Path

    from daskinfer.graphs import tasks
    from daskinfer.storage.objects.store_errors import explain_errors
    from daskinfer.storage.outputs.arrays import ZarrSink

    def refused(call: Any) -> Any:
        def call_or_refuse(*words: Any) -> Any:
            with explain_errors("s3://bucket/rows", "reach"):
                if Path(flag).exists():
                    raise OSError(code, "Slow down")
            return call(*words)

        return call_or_refuse

    patch.setattr(tasks, "read_partition", refused(tasks.read_partition))  # type: ignore[attr-defined]
    patch.setattr(ZarrSink, "write", refused(ZarrSink.write))


def test_a_store_that_is_away_for_a_while_holds_the_job_up(bench: Bench, whole: str) -> None:
    flag = bench.folder / "away"

    def come_back(progress: Progress) -> None:
        if progress.message.startswith("storage-refused"):
            threading.Timer(4, flag.unlink).start()
        elif progress.rows_done >= 64 and not seen:
            seen.append(True)
            flag.touch()

    seen: list[bool] = []
    with patched_workers(whole, refuse, str(flag), errno.ETIMEDOUT):
        report = run(small(bench, "away.zarr"), whole, watch=come_back)
    incident = only(report, "storage-refused")
    assert "s3://bucket/rows" in incident.detail
    assert incident.recover_seconds is not None and incident.recover_seconds >= 4
    assert report.counters["task_failures"] == 0
    assert_calm(bench, "away.zarr")


@pytest.mark.parametrize(
    ("code", "seconds", "kind"), [(errno.ETIMEDOUT, 3, StorageRefused), (errno.ENOSPC, 300, StorageError)]
)
def test_a_store_that_stays_away_or_is_full_ends_the_run(
    bench: Bench, whole: str, code: int, seconds: float, kind: type[StorageError]
) -> None:
    flag = bench.folder / f"away-{code}"
    name = f"ended-{code}.zarr"
    recipe = small(bench, name, recovery__storage=seconds)
    with patched_workers(whole, refuse, str(flag), code), pytest.raises(StorageError) as refusal:
        run(recipe, whole, watch=once(64, flag.touch))
    assert type(refusal.value) is kind
    kept = commits(bench.folder / name)
    assert len(kept) >= 2
    assert run(recipe, whole).partitions_resumed == len(kept)
    assert_calm(bench, name)
