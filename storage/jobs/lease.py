"""The lease on a job: one live driver at a time, told apart without comparing the clocks of two machines.

Every life of a driver is an *epoch*: a record in a slot log, appended by compare-and-swap, so that of two drivers one
wins. While it lives it rewrites a heartbeat whose counter grows. A newcomer on the same machine looks for the holder's
process; on another machine it watches the counter for a while on its own monotonic clock. Where it errs (a holder
paused for long), the holder finds a newer epoch and stops.

A life may also be *joined*: its drivers are members that share the epoch and divide the work by claims (`members`).
"""

from __future__ import annotations

import time
from contextlib import suppress

from pydantic import ValidationError

from daskinfer.errors import Conflict, IntegrityError, JobBusy
from daskinfer.spec.job.record import Progress
from daskinfer.spec.section import Section
from daskinfer.storage.jobs.driver_identity import BEAT, TTL, DriverIdentity, Mode, describe_driver, look_for, refuse
from daskinfer.storage.jobs.heartbeat import Beating
from daskinfer.storage.jobs.membership import Membership, find_living, list_members, seems_alive
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.objects.silence import SilenceTimer
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.objects.urls import join_url

# How long whoever joins waits before it looks again whether another has prepared the job.
_OPENING_SECONDS = 0.2


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


class Lease(Beating):
    """This process's hold on a job; made by `acquire`, given back by `release`.

    Parameters
    ----------
    url
        Folder of the job.
    epoch
        Number of this life, from 1.
    beat
        Seconds between heartbeats.

    Examples
    --------
    >>> ours = acquire("jobs/j1")
    >>> ours.epoch, is_held("jobs/j1")
    (1, True)
    >>> ours.release()
    >>> is_held("jobs/j1")
    False
    """

    member = ""
    """It runs the job alone."""

    def __init__(self, url: str, epoch: int, beat: float) -> None:
        super().__init__()
        self.epoch = epoch
        self._url = url
        self._superseded = False
        self._beat(released=False)
        self._start("daskinfer-lease", beat)

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

    def _write(self, released: bool) -> None:
        # A driver that wakes up after a long pause must not overwrite its successor's heartbeat.
        latest = read_heartbeat(self._url)
        self._superseded = self._superseded or (latest is not None and latest.epoch > self.epoch)
        if not self._superseded:
            heartbeat = Heartbeat(
                epoch=self.epoch,
                counter=self._counter,
                released=released,
                at=time.time(),
                progress=self._progress,
            )
            write_heartbeat(self._url, heartbeat)


def acquire(url: str, beat: float = BEAT, ttl: float = TTL, mode: Mode = "alone") -> Lease:
    """Take the job in the folder `url`, or find out who has it.

    Parameters
    ----------
    url
        Folder of the job.
    beat
        Seconds between our heartbeats.
    ttl
        Seconds to watch a holder on another machine before it counts as dead.
    mode
        `alone`, or `opening` where others are to join afterwards.

    Raises
    ------
    JobBusy
        A live driver has it, or members have, or another newcomer was quicker.

    Examples
    --------
    >>> acquire("jobs/j1").release()
    >>> ours = acquire("jobs/j1")
    >>> ours.epoch
    2
    >>> acquire("jobs/j1")
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobBusy: job j1 is being run by process ...
    >>> ours.release()
    """
    epochs = SlotLog(join_url(url, "epochs"))
    head = epochs.head()
    if head is not None and _is_alive(url, head, ttl):
        raise _busy(url, head, "is being run by")
    try:
        taken = epochs.append(describe_driver(mode).model_dump(mode="json"), expect=head.sequence + 1 if head else 0)
    except Conflict as conflict:
        winner = epochs.head()
        if winner is None:
            raise
        raise _busy(url, winner, "was taken a moment ago by") from conflict
    return Lease(url, _epoch_of(taken), beat)


def join(url: str, beat: float = BEAT, ttl: float = TTL) -> Membership:
    """Become a member of the job in the folder `url`: of the life that others have joined, or as the first of a new one.

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
        A live driver runs it alone.

    Examples
    --------
    >>> members = [join("jobs/j1"), join("jobs/j1")]
    >>> [member.epoch for member in members]
    [1, 1]
    >>> for member in members:
    ...     member.release()
    """
    epochs = SlotLog(join_url(url, "epochs"))
    while True:
        head = epochs.head()
        is_joined = head is not None and DriverIdentity.model_validate(head.record).mode == "joined"
        if head is not None and not is_joined and _is_alive(url, head, ttl):
            if DriverIdentity.model_validate(head.record).mode == "alone":
                raise _busy(url, head, "is being run by", "It runs alone: wait until it ends, or start it with --join.")
            time.sleep(_OPENING_SECONDS)
            continue
        following = 0 if head is None else head.sequence + 1
        # Seen before it is counted on: whoever wants the job alone must find the member that makes it a joined one.
        membership = Membership(url, following if is_joined else following + 1, beat)
        try:
            if not is_joined:
                epochs.append(membership.driver.model_dump(mode="json"), expect=following)
            membership.check()
            return membership
        except (Conflict, JobBusy):  # another was quicker: look again what it made of the job
            membership.withdraw()
        except BaseException:
            membership.withdraw()
            raise


def is_held(url: str) -> bool:
    """Whether a driver seems to run the job, at once: of another machine's the heartbeat's age is believed.

    Examples
    --------
    >>> is_held("jobs/j1")
    False
    >>> ours = acquire("jobs/j1")
    >>> is_held("jobs/j1")
    True
    >>> ours.release()
    """
    head = SlotLog(join_url(url, "epochs")).head()
    if head is None:
        return False
    driver = DriverIdentity.model_validate(head.record)
    if driver.mode == "joined":
        return any(map(seems_alive, list_members(url, _epoch_of(head))))
    heartbeat = _heartbeat_of(url, head)
    if heartbeat is not None and heartbeat.released:
        return False
    found = look_for(driver)
    if found == "unknown":
        return heartbeat is not None and time.time() - heartbeat.at < TTL
    return found == "alive"


def refuse_held(url: str) -> None:
    """Refuse a job that a driver seems to run, as `is_held` says; nothing is taken.

    Raises
    ------
    JobBusy
        Somebody runs it.

    Examples
    --------
    >>> refuse_held("jobs/j1")
    >>> ours = acquire("jobs/j1")
    >>> refuse_held("jobs/j1")
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobBusy: job j1 is being run by process ...
    >>> ours.release()
    """
    head = SlotLog(join_url(url, "epochs")).head()
    if head is not None and is_held(url):
        raise _busy(url, head, "is being run by")


def read_driver(url: str) -> tuple[int, DriverIdentity] | None:
    """Return the newest epoch and its driver; None where the job never ran.

    Examples
    --------
    >>> read_driver("jobs/j1") is None
    True
    >>> acquire("jobs/j1").release()
    >>> epoch, driver = read_driver("jobs/j1")
    >>> epoch, driver.mode
    (1, 'alone')
    """
    log = SlotLog(join_url(url, "epochs"))
    head = log.head()
    try:
        return None if head is None else (_epoch_of(head), DriverIdentity.model_validate(head.record))
    except ValidationError as error:
        place = log.slot_url(head.sequence if head is not None else 0)
        raise IntegrityError(
            f"{place} does not name a driver", hint="Put it back, or start over: daskinfer run RECIPE --fresh."
        ) from error


def read_heartbeat(url: str) -> Heartbeat | None:
    """Return the last heartbeat written, if any.

    Examples
    --------
    >>> acquire("jobs/j1").release()
    >>> found = read_heartbeat("jobs/j1")
    >>> found.epoch, found.released
    (1, True)
    """
    place = join_url(url, "lease.json")
    with suppress(FileNotFoundError):
        try:
            return Heartbeat.model_validate_json(read_record(place))
        except ValidationError as error:
            raise IntegrityError(f"{place} is not a heartbeat", hint="Delete it; nothing else is lost.") from error
    return None


def write_heartbeat(url: str, heartbeat: Heartbeat) -> None:
    """Replace the heartbeat.

    Examples
    --------
    >>> write_heartbeat("jobs/j1", Heartbeat(epoch=1, counter=7, released=False, at=0.0, progress=None))
    >>> read_heartbeat("jobs/j1").counter
    7
    """
    replace_bytes(join_url(url, "lease.json"), heartbeat.model_dump_json().encode())


def _is_alive(url: str, head: Slot, ttl: float) -> bool:
    """Whether the holder, or a member, is alive: they are watched for as long as it takes to be sure."""
    driver = DriverIdentity.model_validate(head.record)
    if driver.mode == "joined":
        return bool(find_living(url, _epoch_of(head), ttl))
    first = _heartbeat_of(url, head)
    if first is not None and first.released:
        return False
    found = look_for(driver)
    if found != "unknown":
        return found == "alive"
    timer, silent = SilenceTimer(), 0.0
    timer.observe(url, first, time.monotonic(), time.monotonic())
    while silent < ttl:
        time.sleep(min(ttl / 10, ttl - silent))
        asked = time.monotonic()
        latest = _heartbeat_of(url, head)
        silence = timer.observe(url, latest, asked, time.monotonic())
        if silence is None and latest is not None:
            return not latest.released
        silent = silence or 0.0
    return False


def _heartbeat_of(url: str, head: Slot) -> Heartbeat | None:
    """Return the heartbeat of this epoch; another epoch's tells nothing about its driver."""
    heartbeat = read_heartbeat(url)
    return heartbeat if heartbeat is not None and heartbeat.epoch == _epoch_of(head) else None


def _epoch_of(slot: Slot) -> int:
    return slot.sequence + 1


def _busy(url: str, head: Slot, how: str, hint: str = "Wait until it ends, or stop it there.") -> JobBusy:
    driver = DriverIdentity.model_validate(head.record)
    if driver.mode == "joined":
        living = [member.driver for member in list_members(url, _epoch_of(head)) if seems_alive(member)] or [driver]
        among = f"{how} {len(living)} member(s), among them"
        return refuse(url, living[0], among, "Add --join to run it with them, or wait until it ends.")
    return refuse(url, driver, how, hint)
