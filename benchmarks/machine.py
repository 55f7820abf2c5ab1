"""What figures were measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil

CORES = 2
"""The first of the machine's, for every contestant alike."""


def keep_cores() -> None:
    """Leave this process, and all that it starts, as many cores as contestants have."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def describe_machine() -> dict[str, Any]:
    """Return date, processor, memory and versions."""
    from daskinfer.runtime.cluster.device_description import describe_device

    device = describe_device()
    libraries = ("daskinfer", "torch", "transformers", "dask", "distributed", "zarr")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": device.name,
        "cores": CORES,
        "memory": psutil.virtual_memory().total,
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "onednn": device.onednn,
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in libraries},
    }


def name_machine(machine: dict[str, Any]) -> str:
    """Return one line for a table."""
    versions = machine["versions"]
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['processor']}, torch {versions['torch']}, "
        f"daskinfer {versions['daskinfer']}; load when it began: {machine['load_before']:.1f}"
    )
