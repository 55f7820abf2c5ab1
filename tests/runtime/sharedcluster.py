"""A scheduler and workers of other people: processes of their own, some in environments without daskinfer, or with another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distributed
import psutil
from distributed import Client, Scheduler, Worker

import daskinfer

LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")


@dataclass
class SharedCluster:
    """Its address and its processes, by name."""

    folder: Path
    address: str = ""
    processes: dict[str, psutil.Popen] = field(default_factory=dict)

    def start(self) -> None:
        place = self.folder / "scheduler.json"
        self._begin("scheduler", "-m", "dask", "scheduler", *LOOPBACK, "--port", "0", "--scheduler-file", str(place))
        wait_until(lambda: place.exists() and bool(place.read_text().strip()))
        with Client(scheduler_file=str(place), timeout=60) as client:
            self.address = client.scheduler.address

    def add(self, name: str, python: str = sys.executable) -> None:
        """Start a worker of this name in a Python of its own."""
        options = [*LOOPBACK, "--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--name", name]
        self._begin(name, "-m", "dask", "worker", self.address, *options, "--resources", "GPU=1", python=python)

    def add_without(self, name: str) -> None:
        """Start a worker whose environment has Dask and no daskinfer."""
        self.add(name, str(make_environment(self.folder / name)))

    def add_older(self, name: str) -> None:
        """Start a worker whose environment has another daskinfer: all of it, with other code and of another version."""
        python = make_environment(self.folder / name)
        (site,) = python.parents[1].glob("lib/python*/site-packages")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(daskinfer.__file__).parent, site / "daskinfer", ignore=ignored)
        with (site / "daskinfer/errors.py").open("a") as source:
            source.write("# Other code.\n")
        described = site / "daskinfer-0.0.1.dist-info/METADATA"
        described.parent.mkdir()
        described.write_text("Metadata-Version: 2.1\nName: daskinfer\nVersion: 0.0.1\n")
        self.add(name, str(python))

    def await_workers(self, count: int) -> None:
        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(count, timeout=120)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        psutil.wait_procs(list(self.processes.values()), timeout=30)

    def _begin(self, name: str, *words: str, python: str = sys.executable) -> None:
        environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.processes[name] = psutil.Popen(
            [python, *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with the libraries of this one, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Such lines are read in no folder that another one names, so that what is installed as a link stays away.
    (site / "libraries.pth").write_text(f"{Path(distributed.__file__).parents[1]}\n")
    return folder / "bin/python"


@contextmanager
def shared_cluster(folder: Path) -> Iterator[SharedCluster]:
    """Start a scheduler, a worker that a job can use, one without daskinfer and one with another version."""
    cluster = SharedCluster(folder)
    try:
        cluster.start()
        cluster.add("able")
        cluster.add_without("without")
        cluster.add_older("older")
        cluster.await_workers(3)
        yield cluster
    finally:
        cluster.stop()


def wait_until(is_so: Any, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def look(address: str) -> dict[str, Any]:
    """Return whatever a job could leave behind on a cluster."""

    # Inside, so that it is sent as code: none of these processes can import the tests.
    def look_at_scheduler(dask_scheduler: Scheduler) -> dict[str, Any]:
        return {
            "plugins": sorted(dask_scheduler.plugins),
            "worker plugins": sorted(dask_scheduler.worker_plugins),
            "nanny plugins": sorted(dask_scheduler.nanny_plugins),
            "allowed failures": dask_scheduler.allowed_failures,
            "resources": {name: dict(by) for name, by in dask_scheduler.resources.items() if by},
            "tasks": [str(key) for key in dask_scheduler.tasks],
            "of workers": {address: dict(state.resources) for address, state in dask_scheduler.workers.items()},
        }

    def look_at_worker(dask_worker: Worker) -> dict[str, Any]:
        import logging
        import os
        import sys

        import psutil

        context: Any = sys.modules.get("daskinfer.graphs.context")
        return {
            "kept": 0 if context is None else len(context._CONTEXTS) + len(context._SHARDS.shards),
            "process": os.getpid(),
            "plugins": sorted(dask_worker.plugins),
            "resources": dict(dask_worker.state.total_resources),
            "free": dict(dask_worker.state.available_resources),
            "tasks": [str(key) for key in dask_worker.state.tasks],
            "children": [child.name() for child in psutil.Process().children()],
            "handlers": len(logging.getLogger().handlers),
        }

    with Client(address, timeout=60) as client:
        found: dict[str, Any] = client.run_on_scheduler(look_at_scheduler)
        return found | {"workers": client.run(look_at_worker)}
