from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daskinfer.errors import IntegrityError, JobBusy
from daskinfer.ids import make_nonce
from daskinfer.spec.job.record import Progress
from daskinfer.storage.jobs.driver_identity import DriverIdentity, describe_driver
from daskinfer.storage.jobs.lease import acquire, is_held, read_driver, read_heartbeat
from daskinfer.storage.objects.slotlog import SlotLog
from tests.support.waiting import wait_until

LONG = 100.0
"""Seconds that a holder is watched for; who is not to be watched for so long takes none of them but on a busy machine."""
DRIVER = """
import sys
from daskinfer.errors import JobBusy
from daskinfer.storage.jobs import driver_identity
from daskinfer.storage.jobs import lease

url, machine = sys.argv[1:]
if machine != "here":
    driver_identity._machine = lambda: machine
for _ in sys.stdin:  # each line asks once
    try:
        held.check()
        answer = f"epoch {held.epoch}"
    except NameError:
        try:
            held = lease.acquire(url, beat=0.05, ttl=1.0)
            answer = f"epoch {held.epoch}"
        except JobBusy as error:
            answer = f"busy: {error}"
    except JobBusy as error:
        answer = f"lost: {error}"
    print(answer.replace(chr(10), " "), flush=True)
held.release()
"""


@contextmanager
def start_driver(url: str, machine: str = "here") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, url, machine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str]) -> str:
    send(process)
    return hear(process)


def send(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "jobs" / "news-0123456789")


def test_live_holder_is_named(url: str) -> None:
    with start_driver(url) as holder:
        assert ask(holder) == "epoch 1"
        assert is_held(url)
        begun = time.monotonic()
        with pytest.raises(JobBusy) as caught:
            acquire(url, ttl=LONG)
        assert time.monotonic() - begun < LONG
        found = read_driver(url)
        assert found is not None
        epoch, driver = found
        assert (epoch, driver.pid) == (1, holder.pid)
        message = str(caught.value)
        assert f"job news-0123456789 is being run by process {holder.pid} on {driver.host}, since 2" in message


def test_killed_holder_is_succeeded_at_once(url: str) -> None:
    with start_driver(url) as holder:
        assert ask(holder) == "epoch 1"
        holder.send_signal(signal.SIGKILL)  # not waited for: a zombie is dead, too
        begun = time.monotonic()
        wait_until(lambda: not is_held(url))
        lease = acquire(url, ttl=LONG)
        assert time.monotonic() - begun < LONG
        assert lease.epoch == 2
        lease.release()


def test_released_job_is_free(url: str) -> None:
    for epoch in (1, 2, 3):
        lease = acquire(url, beat=60)
        assert lease.epoch == epoch
        assert is_held(url)
        lease.check()
        lease.release()
        lease.release()
        assert not is_held(url)
    assert len(SlotLog(f"{url}/epochs").read()) == 3


def test_of_four_newcomers_one_wins(url: str) -> None:
    with start_driver(url) as a, start_driver(url) as b, start_driver(url) as c, start_driver(url) as d:
        drivers = (a, b, c, d)
        for driver in drivers:
            send(driver)
        answers = [hear(driver) for driver in drivers]
        assert answers.count("epoch 1") == 1
        assert sum(answer.startswith("busy: job news-0123456789") for answer in answers) == 3
        winner = drivers[answers.index("epoch 1")]
        assert ask(winner) == "epoch 1"
        winner.send_signal(signal.SIGKILL)
        winner.wait()
        losers = [driver for driver in drivers if driver is not winner]
        for loser in losers:
            send(loser)
        assert sorted(hear(loser)[:7] for loser in losers) == ["busy: j", "busy: j", "epoch 2"]


def test_holder_on_another_machine_needs_torch(url: str) -> None:
    with start_driver(url, "elsewhere") as holder:
        assert ask(holder) == "epoch 1"
        begun = time.monotonic()
        with pytest.raises(JobBusy, match="is being run by"):
            acquire(url, ttl=LONG)
        assert time.monotonic() - begun < LONG, "a moving counter must end the watch"

        holder.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        lease = acquire(url, beat=0.05, ttl=0.5)
        assert time.monotonic() - begun >= 0.5
        assert lease.epoch == 2

        holder.send_signal(signal.SIGCONT)
        assert ask(holder).startswith("lost: job news-0123456789 was taken over by process")
        time.sleep(0.3)
        heartbeat = read_heartbeat(url)
        assert heartbeat is not None
        assert heartbeat.epoch == 2, "the superseded driver must fall silent"
        lease.check()
        lease.release()


def test_holder_on_another_machine_that_releases_while_watched(url: str) -> None:
    with start_driver(url, "elsewhere") as holder:
        assert ask(holder) == "epoch 1"
        holder.communicate()
        begun = time.monotonic()
        lease = acquire(url, ttl=LONG)
        assert time.monotonic() - begun < LONG
        lease.release()


def test_driver_that_died_before_its_first_heartbeat(url: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    log = SlotLog(f"{url}/epochs")
    log.append(describe_driver().model_copy(update={"pid": gone.pid}).model_dump())
    lease = acquire(url)
    assert lease.epoch == 2
    lease.release()


def test_reused_process_id_is_not_the_holder(url: str) -> None:
    """A process with the holder's id and another start time: only the heartbeat can tell."""
    stranger = describe_driver().model_copy(update={"started": 1.0})
    SlotLog(f"{url}/epochs").append(stranger.model_dump())
    assert not is_held(url)
    lease = acquire(url, ttl=0.2)
    assert lease.epoch == 2
    lease.release()


def test_heartbeat_carries_progress(url: str) -> None:
    lease = acquire(url, beat=0.02)
    lease.show(Progress(phase="running", rows_total=10, rows_done=4))

    def is_shown() -> bool:
        heartbeat = read_heartbeat(url)
        assert heartbeat is not None
        assert not heartbeat.released
        return heartbeat.counter >= 4 and heartbeat.progress is not None and heartbeat.progress.rows_done == 4

    wait_until(is_shown)
    lease.show(Progress(phase="stopped", rows_total=10, rows_done=6))
    lease.release()
    last = read_heartbeat(url)
    assert last is not None
    assert last.released
    assert last.progress is not None
    assert last.progress.rows_done == 6


def test_failing_heartbeat_is_remembered_and_heals(url: str) -> None:
    lease = acquire(url, beat=0.02)
    assert lease.trouble is None
    place = Path(url, "lease.json")
    place.unlink()
    place.mkdir()
    wait_until(lambda: "lease.json" in (lease.trouble or ""))
    place.rmdir()
    wait_until(lambda: lease.trouble is None)
    lease.release()
    assert not is_held(url)


def test_damaged_heartbeat(url: str) -> None:
    acquire(url, beat=60).release()
    Path(url, "lease.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"lease\.json is not a heartbeat"):
        acquire(url)


@pytest.mark.s3
def test_on_s3(s3_url: str) -> None:
    url = f"{s3_url}/jobs/{make_nonce()}"
    lease = acquire(url, beat=0.05)
    assert is_held(url)
    with pytest.raises(JobBusy):
        acquire(url)
    lease.check()
    lease.release()
    assert lease.trouble is None
    assert acquire(url, beat=60).epoch == 2


def test_driver_reads_as_host_and_pid() -> None:
    assert str(DriverIdentity(host="node7", machine="m", pid=41, started=0.0, since="")) == "node7:41"
