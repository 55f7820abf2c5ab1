"""The worker processes below a process, for those who count, kill or weigh them."""

from __future__ import annotations

from contextlib import suppress

import psutil


def find_workers(parent: int) -> list[psutil.Process]:
    """Return the Dask workers that the nannies of a process have forked or spawned, in no order."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # A fork server's children have its command line.
            if "spawn_main" in _command(process) or (
                "forkserver" in _command(process) and "forkserver" in _command(process.parent())
            ):
                found.append(process)
    return found


def _command(process: psutil.Process | None) -> str:
    return " ".join(process.cmdline()) if process else ""
