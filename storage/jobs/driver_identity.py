"""Who runs a job: a process, as others find it and tell whether it lives."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

from daskinfer.errors import JobBusy
from daskinfer.spec.section import Section

BEAT = 2.0
"""Seconds between two heartbeats."""
TTL = 15.0
"""Seconds without a heartbeat after which a driver that cannot be looked at counts as dead."""

Mode = Literal["alone", "opening", "joined"]
"""How a job is held: by one driver; by one that prepares its output for others; by all who join."""


class DriverIdentity(Section):
    """The process that runs a job."""

    host: str
    """Name of the machine."""
    machine: str
    """Boot id and process-id namespace: processes with the same value see each other by id."""
    pid: int
    """Process id."""
    started: float
    """When the process started, seconds since 1970 by its machine's clock; tells reused process ids apart."""
    since: str
    """When it took the job, ISO 8601, UTC; for people only."""
    mode: Mode = "alone"
    """`joined`: it was the first of members that all share this life of the job."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


def describe_driver(mode: Mode = "alone") -> DriverIdentity:
    """Return this process as the driver that it becomes.

    Examples
    --------
    >>> driver = describe_driver()
    >>> driver.pid == os.getpid(), driver.mode
    (True, 'alone')
    """
    return DriverIdentity(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=mode,
    )


def look_for(driver: DriverIdentity) -> Literal["alive", "dead", "unknown"]:
    """Look for a driver's process, where this machine is its own.

    Examples
    --------
    >>> driver = describe_driver()
    >>> look_for(driver), look_for(driver.model_copy(update={"machine": "another"}))
    ('alive', 'unknown')
    """
    if driver.machine != _machine():
        return "unknown"
    try:
        process = psutil.Process(driver.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return "dead"
        started = process.create_time()
    except psutil.NoSuchProcess:
        return "dead"
    # Start times are counted from the boot time, and setting the clock moves that: another one proves nothing.
    return "alive" if abs(started - driver.started) < 1 else "unknown"


def refuse(url: str, driver: DriverIdentity, how: str, hint: str = "Wait until it ends, or stop it there.") -> JobBusy:
    """Return the error that says who has the job in the folder `url`.

    Examples
    --------
    >>> driver = describe_driver().model_copy(update={"host": "node7", "pid": 42, "since": "2026-01-02T03:04:05+00:00"})
    >>> print(refuse("work/jobs/j1", driver, "is being run by"))
    job j1 is being run by process 42 on node7, since 2026-01-02T03:04:05+00:00
    Wait until it ends, or stop it there.
    """
    job = url.rstrip("/").rpartition("/")[2]
    return JobBusy(f"job {job} {how} process {driver.pid} on {driver.host}, since {driver.since}", hint=hint)


@cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():  # not Linux
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
