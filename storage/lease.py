"""The lease on a job: one live driver at a time, told apart without comparing the clocks of two machines.

Every life of a driver is an *epoch*: a record in a slot log, appended by compare-and-swap, so that of two drivers one
wins. While it lives it rewrites a heartbeat whose counter grows. A newcomer on the same machine looks for the holder's
process; on another machine it watches the counter for a while on its own monotonic clock. Where it errs (a holder
paused for long), the holder finds a newer epoch and stops.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from daskinfer.errors import Conflict, DaskinferError, IntegrityError, JobBusy
from daskinfer.spec.job import Progress
from daskinfer.spec.section import Section
from daskinfer.storage.filesystem import join_url, read_bytes, replace_bytes
from daskinfer.storage.slotlog import Slot, SlotLog

BEAT = 2.0
"""Seconds between two heartbeats."""
TTL = 15.0
"""Seconds without a heartbeat after which a driver that cannot be looked at counts as dead."""


class Driver(Section):
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

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Heartbeat(Section):
    """What a living driver rewrites."""

    epoch: int
    """Which life of the job's drivers wrote it."""
    counter: int
    """Grows with every beat."""
    released: bool
    """Whether the driver has let go of the job."""
    at: float
    """Seconds since 1970 by the driver's clock; for people only."""
    progress: Progress | None
    """How the run stands."""


class Lease:
    """This process's hold on a job; made by `acquire`.

    Parameters
    ----------
    url
        Folder of the job.
    epoch
        Number of this life, from 1.
    beat
        Seconds between heartbeats.
    """

    def __init__(self, url: str, epoch: int, beat: float) -> None:
        self.epoch = epoch
        self._url = url
        self._progress: Progress | None = None
        self._counter = 0
        self._failure: Exception | None = None
        self._superseded = False
        self._stopping = threading.Event()
        self._beat(released=False)
        self._thread = threading.Thread(target=self._keep_beating, args=(beat,), name="daskinfer-lease", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why the last heartbeat could not be written; None while all is well."""
        failure = self._failure
        return None if failure is None else f"{type(failure).__name__}: {failure}"

    def show(self, progress: Progress) -> None:
        """Let the next heartbeat carry `progress`."""
        self._progress = progress

    def check(self) -> None:
        """Make sure that the job is still ours.

        Raises
        ------
        JobBusy
            Another driver has taken it, because ours was silent for too long. Stop without writing anything.
        """
        head = SlotLog(join_url(self._url, "epochs")).head()
        if head is not None and _epoch_of(head) > self.epoch:
            raise _busy(self._url, head, "was taken over by")

    def release(self) -> None:
        """Let go of the job, so that the next driver need not wait. A second call does nothing."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._beat(released=True)

    def _keep_beating(self, beat: float) -> None:
        while not self._stopping.wait(beat):
            self._beat(released=False)

    def _beat(self, released: bool) -> None:
        try:
            # A driver that wakes up after a long pause must not overwrite its successor's heartbeat.
            latest = read_heartbeat(self._url)
            self._superseded = self._superseded or (latest is not None and latest.epoch > self.epoch)
            if not self._superseded:
                self._counter += 1
                write_heartbeat(
                    self._url,
                    Heartbeat(
                        epoch=self.epoch,
                        counter=self._counter,
                        released=released,
                        at=time.time(),
                        progress=self._progress,
                    ),
                )
            self._failure = None
        except (DaskinferError, OSError) as error:  # a store that is away for a minute must not end hours of work
            self._failure = error


def acquire(url: str, beat: float = BEAT, ttl: float = TTL) -> Lease:
    """Take the job in the folder `url`, or find out who has it.

    Parameters
    ----------
    url
        Folder of the job.
    beat
        Seconds between our heartbeats.
    ttl
        Seconds to watch a holder on another machine before it counts as dead.

    Raises
    ------
    JobBusy
        A live driver has it, or another newcomer was quicker.
    """
    epochs = SlotLog(join_url(url, "epochs"))
    head = epochs.head()
    if head is not None and _is_alive(url, head, ttl):
        raise _busy(url, head, "is being run by")
    try:
        taken = epochs.append(describe_driver().model_dump(mode="json"), expect=head.sequence + 1 if head else 0)
    except Conflict as conflict:
        winner = epochs.head()
        if winner is None:
            raise
        raise _busy(url, winner, "was taken a moment ago by") from conflict
    return Lease(url, _epoch_of(taken), beat)


def is_held(url: str) -> bool:
    """Say whether a driver seems to run the job, at once: of another machine's the heartbeat's age is believed."""
    head = SlotLog(join_url(url, "epochs")).head()
    if head is None:
        return False
    heartbeat = _heartbeat_of(url, head)
    if heartbeat is not None and heartbeat.released:
        return False
    found = _look_for(Driver.model_validate(head.record))
    if found == "unknown":
        return heartbeat is not None and time.time() - heartbeat.at < TTL
    return found == "alive"


def read_driver(url: str) -> tuple[int, Driver] | None:
    """Return the newest epoch and its driver; None where the job never ran."""
    head = SlotLog(join_url(url, "epochs")).head()
    return None if head is None else (_epoch_of(head), Driver.model_validate(head.record))


def read_heartbeat(url: str) -> Heartbeat | None:
    """Return the last heartbeat written, if any."""
    place = join_url(url, "lease.json")
    with suppress(FileNotFoundError):
        try:
            return Heartbeat.model_validate_json(read_bytes(place))
        except ValidationError as error:
            raise IntegrityError(f"{place} is not a heartbeat", hint="Delete it; nothing else is lost.") from error
    return None


def write_heartbeat(url: str, heartbeat: Heartbeat) -> None:
    """Replace the heartbeat."""
    replace_bytes(join_url(url, "lease.json"), heartbeat.model_dump_json().encode())


def describe_driver() -> Driver:
    """Return this process as the driver that it becomes."""
    return Driver(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():  # not Linux
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"


def _look_for(driver: Driver) -> Literal["alive", "dead", "unknown"]:
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


def _is_alive(url: str, head: Slot, ttl: float) -> bool:
    """Watch the holder for as long as it takes to be sure."""
    first = _heartbeat_of(url, head)
    if first is not None and first.released:
        return False
    found = _look_for(Driver.model_validate(head.record))
    if found != "unknown":
        return found == "alive"
    deadline = time.monotonic() + ttl
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, ttl / 10))
        latest = _heartbeat_of(url, head)
        if latest is not None and latest != first:
            return not latest.released
    return False


def _heartbeat_of(url: str, head: Slot) -> Heartbeat | None:
    """Return the heartbeat of this epoch; another epoch's tells nothing about its driver."""
    heartbeat = read_heartbeat(url)
    return heartbeat if heartbeat is not None and heartbeat.epoch == _epoch_of(head) else None


def _epoch_of(slot: Slot) -> int:
    return slot.sequence + 1


def _busy(url: str, head: Slot, how: str) -> JobBusy:
    driver = Driver.model_validate(head.record)
    return JobBusy(
        f"job {url.rstrip('/').rpartition('/')[2]} {how} process {driver.pid} on {driver.host}, since {driver.since}",
        hint="Wait until it ends, or stop it there.",
    )
