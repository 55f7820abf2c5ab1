"""The members of a job: drivers that run it together, each with a cluster of its own, sharing nothing but storage.

All members of one life of a job share its epoch, so that whoever takes the job alone fences all of them at once. Each
rewrites a record of its own, `members/<member>.json`, whose counter grows while it lives. Others look for its process on
the same machine; on another one they watch the counter, each on its own monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress

from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.ids import make_nonce
from daskinfer.spec.job.record import Progress
from daskinfer.spec.section import Section
from daskinfer.storage.jobs.driver_identity import BEAT, TTL, DriverIdentity, describe_driver, look_for, refuse
from daskinfer.storage.jobs.heartbeat import Beating
from daskinfer.storage.objects.filesystem import delete, list_names, read_record, replace_bytes
from daskinfer.storage.objects.silence import SilenceTimer
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url

_LOOKS = 10


class Member(Section):
    """What a living member rewrites."""

    member: str
    """Its id, which no other process ever has."""
    epoch: int
    """Life of the job that it shares with the other members."""
    driver: DriverIdentity
    """Its process."""
    counter: int
    """Grows with every beat."""
    released: bool
    """Whether it has left."""
    at: float
    """Seconds since 1970 by its clock; for people only."""
    progress: Progress | None
    """How its run stands."""


class Membership(Beating):
    """This process as a member of a job; after `release`, what it has claimed is free.

    Parameters
    ----------
    url
        Folder of the job.
    epoch
        Life of the job.
    beat
        Seconds between heartbeats.

    Examples
    --------
    >>> membership = Membership("jobs/j1", epoch=1)
    >>> [member.released for member in list_members("jobs/j1")]
    [False]
    >>> membership.release()
    >>> [member.released for member in list_members("jobs/j1")]
    [True]
    """

    def __init__(self, url: str, epoch: int, beat: float = BEAT) -> None:
        super().__init__()
        self.member = make_nonce(12)
        self.epoch = epoch
        self.driver = describe_driver("joined")
        self._url = url
        self._place = join_url(url, "members", f"{self.member}.json")
        self._write(released=False)  # whoever cannot be seen must not begin
        self._start("daskinfer-member", beat)

    def check(self) -> None:
        """Make sure that the job is still its members'.

        Raises
        ------
        JobBusy
            A driver has taken it alone, because all members were silent for too long. Stop without writing anything.
        """
        head = SlotLog(join_url(self._url, "epochs")).head()
        if head is not None and head.sequence + 1 > self.epoch:
            raise refuse(self._url, DriverIdentity.model_validate(head.record), "was taken over by")

    def withdraw(self) -> None:
        """Leave as if it had never come."""
        self.release()
        delete(self._place)

    def _write(self, released: bool) -> None:
        record = Member(
            member=self.member,
            epoch=self.epoch,
            driver=self.driver,
            counter=self._counter,
            released=released,
            at=time.time(),
            progress=self._progress,
        )
        replace_bytes(self._place, record.model_dump_json().encode())


class Watch:
    """Tells living members from those that are gone, by looking at them again and again.

    Parameters
    ----------
    url
        Folder of the job.
    ttl
        Seconds without a heartbeat after which a member that cannot be looked at counts as gone.
    clock
        Seconds on any clock of this process that never goes back.

    Examples
    --------
    >>> members = [Membership("jobs/j1", epoch=1) for _ in range(2)]
    >>> members[0].release()
    >>> Watch("jobs/j1").look([member.member for member in members]) == {members[0].member}
    True
    >>> members[1].release()
    """

    def __init__(self, url: str, ttl: float = TTL, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._ttl = ttl
        self._clock = clock
        self._timer = SilenceTimer()

    def look(self, members: Collection[str]) -> set[str]:
        """Look at these members once more; return those that are gone. One that was silent may wake up."""
        return {name for name in members if self._is_gone(name)}

    def _is_gone(self, name: str) -> bool:
        asked = self._clock()
        found = read_member(self._url, name)
        answered = self._clock()
        if found is not None:
            if found.released:
                return True
            verdict = look_for(found.driver)
            if verdict != "unknown":
                return verdict == "dead"
        silent = self._timer.observe(name, None if found is None else found.counter, asked, answered)
        return silent is not None and silent >= self._ttl


def read_member(url: str, name: str) -> Member | None:
    """Return what a member wrote last; None where it never did.

    Raises
    ------
    IntegrityError
        It cannot be read.

    Examples
    --------
    >>> membership = Membership("jobs/j1", epoch=1)
    >>> membership.release()
    >>> read_member("jobs/j1", membership.member).epoch, read_member("jobs/j1", "another")
    (1, None)
    """
    place = join_url(url, "members", f"{name}.json")
    with suppress(FileNotFoundError):
        try:
            return Member.model_validate_json(read_record(place))
        except ValidationError as error:
            raise IntegrityError(
                f"{place} is not the record of a member", hint="Delete it; nothing else is lost."
            ) from error
    return None


def list_members(url: str, epoch: int | None = None) -> list[Member]:
    """Return all members that a job has had, or those of one of its lives, in the order in which they came.

    Examples
    --------
    >>> for epoch in (1, 2):
    ...     Membership("jobs/j1", epoch).release()
    >>> [member.epoch for member in list_members("jobs/j1")], len(list_members("jobs/j1", epoch=2))
    ([1, 2], 1)
    """
    names = [name.removesuffix(".json") for name in list_names(join_url(url, "members")) if name.endswith(".json")]
    found = [member for name in names if (member := read_member(url, name)) is not None]
    return sorted(
        (member for member in found if epoch in (None, member.epoch)),
        key=lambda member: (member.epoch, member.driver.since, member.member),
    )


def find_living(url: str, epoch: int, ttl: float = TTL) -> list[Member]:
    """Return members of a life of a job that live, as soon as some do; none once all are sure to be gone.

    Examples
    --------
    >>> membership = Membership("jobs/j1", epoch=1)
    >>> len(find_living("jobs/j1", epoch=1))
    1
    >>> membership.release()
    >>> find_living("jobs/j1", epoch=1)
    []
    """
    watch = Watch(url, ttl)
    members = {member.member: member for member in list_members(url, epoch)}
    while left := [members[name] for name in members.keys() - watch.look(members)]:
        if living := [member for member in left if _is_moving(url, member)]:
            return living
        time.sleep(ttl / _LOOKS)
    return []


def _is_moving(url: str, before: Member) -> bool:
    """Whether a member is seen to live: its process is there, or it has beaten since."""
    if look_for(before.driver) == "alive":
        return True
    now = read_member(url, before.member)
    return now is not None and not now.released and now.counter != before.counter


def seems_alive(member: Member) -> bool:
    """Whether a member seems to live, at once: of another machine's the heartbeat's age is believed.

    Examples
    --------
    >>> membership = Membership("jobs/j1", epoch=1)
    >>> seems_alive(read_member("jobs/j1", membership.member))
    True
    >>> membership.release()
    >>> seems_alive(read_member("jobs/j1", membership.member))
    False
    """
    verdict = look_for(member.driver)
    if member.released or verdict == "dead":
        return False
    return verdict == "alive" or time.time() - member.at < TTL
