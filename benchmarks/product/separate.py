"""A cluster for benchmarks whose scheduler and workers are processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

SETTINGS = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "20",
}
"""Of docs/howto/cluster.md."""


@dataclass(frozen=True)
class Cluster:
    """Where it is, and its processes."""

    address: str
    scheduler: psutil.Process
    nannies: list[psutil.Process]
    """Each has a worker as its child."""


@contextmanager
def start_cluster(workers: int) -> Iterator[Cluster]:
    """Start a scheduler and workers of one thread that declare a GPU."""
    dask: list[str | Path] = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, **SETTINGS},
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "scheduler.json"
        options: list[str | Path] = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", place]
        processes = [subprocess.Popen([*dask, "scheduler", *options], **quiet)]
        try:
            while not place.exists() or not place.read_text().strip():
                time.sleep(0.1)
            command: list[str | Path] = [
                *dask,
                "worker",
                "--scheduler-file",
                place,
                "--nthreads",
                "1",
                "--no-dashboard",
            ]
            processes += [subprocess.Popen([*command, "--resources", "GPU=1"], **quiet) for _ in range(workers)]
            with Client(scheduler_file=str(place), timeout=60) as client:
                client.wait_for_workers(workers, timeout=120)
                address = client.scheduler.address
            scheduler, *nannies = (psutil.Process(process.pid) for process in processes)
            yield Cluster(address, scheduler, nannies)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait()
