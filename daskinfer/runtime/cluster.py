"""The cluster a job runs on: worker processes started here, or a scheduler that is already there."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from typing import Any

import dask
from distributed import Client, LocalCluster, Status, system
from distributed.utils import silence_logging_cmgr
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from daskinfer.errors import JobFailed, RecipeError
from daskinfer.logs import log_settings
from daskinfer.models.devices import find_device
from daskinfer.models.limits import memory_limit
from daskinfer.runtime.forking import fork_workers
from daskinfer.runtime.processes import set_up_processes
from daskinfer.spec import recipe as recipes
from daskinfer.spec.plan import DeviceShape, WorkerShape

CONNECT_SECONDS = 10
# Every connection keeps its last 1,000 messages by default, whole graphs among them: memory that grows for an hour.
_QUIET = {"distributed.admin.low-level-log-length": 20}


def find_workers(cluster: recipes.Cluster) -> list[WorkerShape]:
    """Return the workers that a plan can count on: those of a running cluster, or those that would be started."""
    if cluster.address is not None:
        with _connect(cluster.address) as client:
            return measure_workers(client)
    local = cluster.workers
    device = find_device()
    memory = _memory_of(local)
    return [
        WorkerShape(
            address=f"local-{index}", threads=local.threads, memory=memory, resources=local.resources, device=device
        )
        for index in range(local.workers)
    ]


def start_imports(cluster: recipes.Cluster) -> None:
    """Let what a local cluster's workers need be imported from now on, while the driver does other things."""
    if cluster.address is None and fork_workers():
        # Dask does so itself as it starts a worker.
        os.environ.update(_environment(cluster.workers))
        with _deaf():
            forkserver.ensure_running()


@contextmanager
def open_cluster(cluster: recipes.Cluster, patience: float = 0) -> Iterator[Client]:
    """Start or join a cluster, prepare its processes, and leave it as it was found.

    Parameters
    ----------
    cluster
        Which one.
    patience
        Seconds that a scheduler may take until it answers, beyond those of one try.

    Raises
    ------
    JobFailed
        The scheduler cannot be reached, or workers do not start.
    """
    logs = log_settings()
    if cluster.address is not None:
        # Its workers may be anywhere: what they log goes to their own stderr.
        logs = None if logs is None else replace(logs, file=None)
        # Silent as a local cluster is: what goes wrong is told once, by the job.
        with (
            dask.config.set(_QUIET),
            silence_logging_cmgr(logging.CRITICAL),
            _connect_patiently(cluster.address, patience) as client,
        ):
            set_up_processes(client, logs)
            yield client
        return
    local = cluster.workers
    # What a nanny gives its workers is read when it is made, restarts included, so the settings outlive the start.
    with dask.config.set(_local_settings(local) | fork_workers()), _start(local) as workers, Client(workers) as client:
        set_up_processes(client, logs)
        yield client


def measure_workers(client: Client, workers: list[str] | None = None) -> list[WorkerShape]:
    """Return the workers that are connected now, or those of them that are named, with what they compute on."""
    devices: dict[str, DeviceShape] = client.run(find_device, workers=workers)
    return [
        shape.model_copy(update={"device": devices[shape.address]})
        for shape in worker_shapes(client)
        if shape.address in devices
    ]


def worker_shapes(client: Client) -> list[WorkerShape]:
    """Return the workers that are connected now."""
    # Not `Client.scheduler_info`: it returns what the client last heard, and that is without workers whenever the client
    # has asked for itself in this moment, which it does every two seconds.
    found = client.sync(client.scheduler.identity, n_workers=-1)
    return [shape_worker(address, worker) for address, worker in found["workers"].items()]


def shape_worker(address: str, identity: dict[str, Any]) -> WorkerShape:
    """Make a worker's shape from what the scheduler says of it."""
    return WorkerShape(
        address=address,
        threads=identity["nthreads"],
        memory=identity["memory_limit"] or 0,
        resources={tag: float(amount) for tag, amount in identity["resources"].items()},
        name=str(identity.get("name", "")),
    )


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except ValueError as error:
        raise RecipeError(
            f"cluster.address: {address} is no address: {error}", hint="Write it as tcp://HOST:PORT or tls://HOST:PORT."
        ) from error
    except OSError as error:
        raise JobFailed(
            f"no Dask scheduler answers at {address}: {error}", hint="Start it, or mend cluster.address in the recipe."
        ) from error


def _connect_patiently(address: str, patience: float) -> Client:
    retry = Retrying(
        retry=retry_if_exception_type(JobFailed), stop=stop_after_delay(patience), wait=wait_fixed(1), reraise=True
    )
    client: Client = retry(_connect, address)
    return client


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no process or thread that is started in here hear Ctrl-C.

    In a terminal it reaches every process of the group, and the driver is to stop the workers in good order. Threads and
    processes inherit what is blocked here. The tracker is started first, for its start would lift the block again.
    """
    resource_tracker.ensure_running()
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


@contextmanager
def _start(local: recipes.LocalCluster) -> Iterator[LocalCluster]:
    try:
        with _deaf():
            workers = LocalCluster(
                n_workers=local.workers,
                threads_per_worker=local.threads,
                processes=True,
                host="127.0.0.1",
                resources=local.resources,
                # What workers are forked from may be older than this job, and know nothing of what was set since.
                env={**os.environ, **_environment(local)},
                memory_limit=_memory_of(local),
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
    except RuntimeError as error:
        raise JobFailed(f"the local workers did not start: {error}") from error
    with workers:
        try:
            yield workers
        finally:
            if workers.scheduler.status != Status.running:
                # Every worker's nanny wants to sign off from it, and would try for half a minute.
                with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
                    workers.close()


def _memory_of(local: recipes.LocalCluster) -> int:
    """Return the bytes that each local worker may use."""
    # Dask gives no worker more than it reads itself, which counts reservations and the user's own limit too.
    allowed: int = min(memory_limit(), system.memory_limit())
    return allowed // local.workers


def _environment(local: recipes.LocalCluster) -> dict[str, str]:
    """Return the variables of worker processes, without the defaults that slow inference."""
    threads = str(local.threads)
    return {
        # Freed activations go back to the kernel and are faulted in again under the nanny's own setting, which costs a
        # quarter of CPU inference.
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


def _local_settings(local: recipes.LocalCluster) -> dict[str, Any]:
    """Return Dask settings without the defaults that slow or break inference."""
    return _QUIET | {
        "distributed.nanny.pre-spawn-environ": _environment(local),
        "distributed.worker.daemon": False,
        # After 15 s by default the cluster gives a dead worker up for good, while its nanny still restarts it: on a busy
        # machine that takes longer.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        # Shards are not Dask's to spill; a worker that runs out of memory should stop and say so.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        "distributed.scheduler.worker-ttl": "60s",
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.gil.enabled": False,
    }
