from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import ClaimLost, JobBusy
from daskinfer.ids import make_nonce
from daskinfer.spec.job.record import Progress
from daskinfer.storage.jobs.driver_identity import describe_driver
from daskinfer.storage.jobs.lease import acquire, is_held, join
from daskinfer.storage.jobs.membership import Member, Watch, list_members, read_member, seems_alive
from daskinfer.storage.jobs.partition_claims import Claim, ClaimLog
from daskinfer.storage.objects.filesystem import replace_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from tests.support.waiting import wait_until


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "jobs" / "news-0123456789")


def write_member(url: str, name: str, epoch: int = 1, **changes: Any) -> None:
    """Write what a member on another machine would, where nothing else is said."""
    driver = describe_driver("joined").model_copy(update={"machine": "elsewhere", **changes.pop("driver", {})})
    facts = {"counter": 1, "released": False, "at": time.time(), "progress": None} | changes
    member = Member(member=name, epoch=epoch, driver=driver, **facts)
    replace_bytes(join_url(url, "members", f"{name}.json"), member.model_dump_json().encode())


def test_members_share_a_life_that_a_driver_alone_ends(url: str) -> None:
    one, two = join(url), join(url)
    assert (one.epoch, two.epoch) == (1, 1)
    assert one.member != two.member
    assert [member.member for member in list_members(url, 1)] == sorted([one.member, two.member])
    assert is_held(url)
    with pytest.raises(JobBusy, match=rf"is being run by 2 member\(s\), among them process {os.getpid()}") as caught:
        acquire(url)
    assert "--join" in str(caught.value.hint)
    one.release()
    assert is_held(url)
    two.check()
    two.release()
    two.release()
    assert not is_held(url)
    lease = acquire(url)
    assert lease.epoch == 2
    with pytest.raises(JobBusy, match="was taken over by"):
        two.check()
    with pytest.raises(JobBusy, match="is being run by process") as caught:
        join(url)
    assert "alone" in str(caught.value.hint)
    lease.release()
    three = join(url)
    assert three.epoch == 3
    three.release()


def test_a_newcomer_waits_until_the_job_is_prepared(url: str) -> None:
    opening = acquire(url, mode="opening")
    joined: list[int] = []

    def come() -> None:
        membership = join(url)
        joined.append(membership.epoch)
        membership.release()

    newcomer = threading.Thread(target=come)
    newcomer.start()
    newcomer.join(0.5)
    assert not joined
    opening.release()
    newcomer.join(120)
    assert joined == [2]


def test_of_many_newcomers_all_join_one_life(url: str) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(join(url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {membership.epoch for membership in found} == {1}
    assert len(SlotLog(f"{url}/epochs").read()) == 1
    assert len(list_members(url)) == 6, "who was not the first to come has left something behind"
    for membership in found:
        membership.release()
    assert not is_held(url)


def test_a_heartbeat_carries_progress_and_the_end(url: str) -> None:
    membership = join(url, beat=0.02)
    membership.show(Progress(phase="running", rows_total=10, rows_this_run=4))

    def is_shown() -> bool:
        found = read_member(url, membership.member)
        assert found is not None
        return found.counter > 3 and found.progress is not None and found.progress.rows_this_run == 4

    wait_until(is_shown)
    assert membership.trouble is None
    membership.release()
    last = read_member(url, membership.member)
    assert last is not None
    assert last.released
    assert not seems_alive(last)


def test_dead_members_are_succeeded(url: str) -> None:
    SlotLog(f"{url}/epochs").append(describe_driver("joined").model_dump(mode="json"))
    write_member(url, "killed", driver={"machine": describe_driver().machine, "pid": 2**22 + 1})
    write_member(url, "silent")
    begun = time.monotonic()
    lease = acquire(url, ttl=0.5)
    assert time.monotonic() - begun >= 0.5, "one on another machine has to be watched"
    assert lease.epoch == 2
    lease.release()


def test_the_living_are_told_from_the_gone_by_watching(url: str) -> None:
    now = 0.0
    watch = Watch(url, 15.0, lambda: now)
    for name in ("silent", "beating", "leaving"):
        write_member(url, name)
    names = ("silent", "beating", "leaving", "never seen")
    assert watch.look(names) == set()
    now = 14.0
    write_member(url, "beating", counter=2)
    write_member(url, "leaving", counter=2, released=True)
    assert watch.look(names) == {"leaving"}
    now = 16.0
    assert watch.look(names) == {"silent", "leaving", "never seen"}
    write_member(url, "silent", counter=2)
    assert watch.look(names) == {"leaving", "never seen"}, "it was only asleep"


def test_claims_are_taken_over_by_token(any_store: str) -> None:
    log = ClaimLog(any_store, epoch=3)
    assert log.head(8) is None
    with pytest.raises(ClaimLost, match="nobody has them"):
        log.confirm(8, "a")
    assert log.take(8, ("a",), 0)
    assert not log.take(8, ("b",), 0)
    log.confirm(8, "a")
    assert log.head(8) == Claim(("a",), 0)
    assert log.take(8, ("a", "b"), 1)
    log.confirm(8, "a")
    log.confirm(8, "b")
    assert log.take(8, ("b",), 2)
    assert not log.take(8, ("c",), 2)
    with pytest.raises(ClaimLost, match="taken over from member a; b has them"):
        log.confirm(8, "a")
    assert ClaimLog(any_store, epoch=4).head(8) is None


@pytest.mark.s3
def test_on_s3(s3_url: str) -> None:
    url = f"{s3_url}/jobs/{make_nonce()}"
    one, two = join(url), join(url)
    assert one.epoch == two.epoch == 1
    for membership in (one, two):
        membership.release()
        assert membership.trouble is None
    assert acquire(url, beat=60).epoch == 2
