"""Two workers that reach the scheduler and not each other, in mid-run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client, Scheduler, SpecCluster

from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.schema import Recipe
from tests.e2e.conftest import Bench, data_bytes, make_bench, run
from tests.e2e.faults import once
from tests.e2e.hosts import Host, is_allowed, open_hosts

pytestmark = [
    pytest.mark.usefixtures("every_event_is_told"),
    pytest.mark.slow,
    pytest.mark.late,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not is_allowed(), reason="needs the right to make network namespaces"),
]

ROWS, PARTITION = 960, 32
TAGS = ("GPU=1 TWO=1 THREE=1", "GPU=1 TWO=1 THREE=1", "GPU=1 THREE=1")


@dataclass(frozen=True)
class Fleet:
    """A scheduler on our side, and hosts with a worker and its nanny each; `run` finds two of them, or all three."""

    scheduler: str
    hosts: list[Host]

    def holder(self, stage: int) -> Host:
        """Return the host of the worker that computes a stage."""
        with Client(self.scheduler) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
        (address,) = [
            address
            for address, worker in workers.items()
            if any(tag.endswith(f"/stage-{stage}") and amount for tag, amount in worker["resources"].items())
        ]
        return next(host for host in self.hosts if f"//{host.address}:" in address)

    def await_all(self) -> None:
        with Client(self.scheduler) as client:
            client.wait_for_workers(len(self.hosts), timeout=120)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        hosts = stack.enter_context(open_hosts(len(TAGS), together=True))
        options = {"dashboard_address": "127.0.0.1:0", "host": hosts[0].gateway}
        cluster = SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, silence_logs=50)
        fleet = Fleet(stack.enter_context(cluster).scheduler_address, hosts)
        for host, tags in zip(hosts, TAGS, strict=True):
            stack.enter_context(start_worker(fleet.scheduler, host, tags, folder))
        fleet.await_all()
        yield fleet


@contextmanager
def start_worker(scheduler: str, host: Host, tags: str, folder: Path) -> Iterator[None]:
    words = (
        f"-m distributed.cli.dask_worker {scheduler} --nthreads 1 --no-dashboard --memory-limit 0 "
        f"--host {host.address} --local-directory {folder / host.name} --preload-nanny daskinfer.runtime.cluster.forking"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with (folder / f"{host.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*host.inside, sys.executable, *words.split(), "--resources", tags],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, fleet: Fleet) -> Bench:
    """A job of 30 partitions, and `calm.zarr`: what it writes when nothing disturbs it."""
    bench = make_bench(tmp_path_factory.mktemp("cut"), tiny_model, ROWS)
    run(small(bench, "calm.zarr"), fleet.scheduler)
    return bench


def small(bench: Bench, name: str, standby: int = 0) -> Recipe:
    return bench.recipe(
        name,
        input__partition_rows=PARTITION,
        pipeline__activations={"transport": "direct"},
        placement__standby=standby,
    )


def run_cut(bench: Bench, fleet: Fleet, recipe: Recipe, workers: int, deaf: int) -> Report:
    """Run the job, and cut the link between the workers of its two stages for good, on the host of stage `deaf`."""
    cut: list[tuple[Host, Host]] = []

    def act() -> None:
        cut.append((fleet.holder(deaf), fleet.holder(1 - deaf)))
        cut[0][0].cut_off(cut[0][1])

    try:
        report = run(recipe, fleet.scheduler, workers, watch=once(2 * PARTITION, act))
    finally:
        for one, other in cut:
            one.reach(other)
    assert data_bytes(Path(recipe.output.url)) == data_bytes(bench.folder / "calm.zarr")
    (incident,) = [incident for incident in report.incidents if incident.kind == "network-cut"]
    one, other = cut[0]
    assert f"//{one.address}:" in incident.detail and f"//{other.address}:" in incident.detail
    assert "cannot reach" in incident.detail
    assert incident.detect_seconds is not None and incident.recover_seconds is not None
    assert report.counters["workers_lost"] == 1
    seconds = f"detected after {incident.detect_seconds:.1f} s, recovered after {incident.recover_seconds:.1f} s"
    print(f"{incident.detail}: {seconds}")
    return report


def test_a_spare_takes_over_from_a_worker_that_is_cut_off(bench: Bench, fleet: Fleet) -> None:
    report = run_cut(bench, fleet, small(bench, "spare.zarr", standby=1), workers=3, deaf=1)
    assert "stage-doubled" not in {incident.kind for incident in report.incidents}


def test_without_a_spare_the_other_worker_does_it_all(bench: Bench, fleet: Fleet) -> None:
    fleet.await_all()
    report = run_cut(bench, fleet, small(bench, "alone.zarr"), workers=2, deaf=0)
    # The nanny of the one that was taken off starts another, which is cut off as well.
    assert {"cut-off", "stage-doubled"} <= {incident.kind for incident in report.incidents}
