"""What a look at the workers says, that the scheduler has it to say, and how a worker is taken off."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable

import pytest
from dask.utils import key_split
from distributed import Client, Worker
from hypothesis import given
from hypothesis import strategies as st

from daskinfer.graphs.handoff import JobHandle
from daskinfer.knobs import ANSWER_SECONDS
from daskinfer.runtime.cluster import process_setup, resource_tags
from daskinfer.runtime.cluster.restarts import restart_worker
from daskinfer.runtime.cluster.scheduler_state import ClusterSnapshot, WorkerSnapshot, look_at_workers
from daskinfer.runtime.monitoring.heartbeats import HeartbeatMonitor
from daskinfer.runtime.monitoring.monitor import ClusterMonitor
from daskinfer.runtime.protocol.events import Event, MemoryPressure, Running, WorkerFrozen, WorkerPaused, WorkerResumed
from daskinfer.spec.job.generation import SnapshotPin


def sight(worker: str, last_seen: float, *, paused: bool = False, used: int = 0, limit: int = 0) -> WorkerSnapshot:
    return WorkerSnapshot(worker, last_seen, paused, used, limit)


def test_silence_is_told_again_as_it_goes_on_and_after_a_sign_of_life() -> None:
    watch = HeartbeatMonitor(frozen=15)
    told: list[tuple[float, Event]] = []
    for second in range(60):
        seen = float(min(second, 4) if second < 40 else min(second, 42))
        told += [
            (second, event)
            for event in watch.take(ClusterSnapshot(second, 0.5, [sight("a", seen), sight("b", second)]))
        ]
    assert told == [(19, WorkerFrozen("a", 15.0)), (34, WorkerFrozen("a", 30.0)), (57, WorkerFrozen("a", 15.0))]


def test_a_scheduler_that_was_busy_makes_nobody_frozen() -> None:
    watch = HeartbeatMonitor(frozen=15)
    workers = [f"w{number}" for number in range(4)]
    assert watch.take(ClusterSnapshot(100, 0.5, [sight(worker, 99.8) for worker in workers])) == []
    # Nothing was heard for two minutes, because nobody listened.
    assert watch.take(ClusterSnapshot(220, 0.5, [sight(worker, 99.8) for worker in workers])) == []
    assert watch.take(ClusterSnapshot(221, 0.5, [sight(worker, 220.5) for worker in workers])) == []


def test_many_workers_beat_more_seldom() -> None:
    watch = HeartbeatMonitor(frozen=2)
    silent = [bool(watch.take(ClusterSnapshot(second, 6.0, [sight("a", 0)]))) for second in range(40)]
    assert silent.index(True) == 30


@given(st.lists(st.tuples(st.sampled_from([1.0, 1.3, 40.0]), st.sampled_from([None, 0.0, 0.5, 0.9])), max_size=100))
def test_whoever_beats_is_never_frozen(looks: list[tuple[float, float | None]]) -> None:
    watch = HeartbeatMonitor(frozen=5)
    at, seen = 0.0, 0.0
    for elapsed, age in looks:
        at += elapsed
        if age is not None or at - seen > 4:
            seen = at - (age or 0.0)
        assert watch.take(ClusterSnapshot(at, 0.5, [sight("a", seen)])) == []


def test_pauses_and_pressure() -> None:
    watch = HeartbeatMonitor(frozen=15)
    looks = [
        sight("a", 0, used=500, limit=1000),
        sight("a", 1, used=700, limit=1000),
        sight("a", 2, used=900, limit=1000, paused=True),
        sight("a", 3, used=950, limit=1000, paused=True),
        sight("a", 4, used=500, limit=1000),
        sight("a", 5, used=10**9, limit=0),
    ]
    told = [watch.take(ClusterSnapshot(second, 0.5, [look])) for second, look in enumerate(looks)]
    assert told == [
        [],
        [MemoryPressure("a", 700, 1000, False)],
        [WorkerPaused("a", 900, 1000), MemoryPressure("a", 900, 1000, True)],
        [MemoryPressure("a", 950, 1000, True)],
        [WorkerResumed("a")],
        [],
    ]


def test_a_worker_that_went_and_came_begins_anew() -> None:
    watch = HeartbeatMonitor(frozen=3)
    for second in range(3):
        assert watch.take(ClusterSnapshot(second, 0.5, [sight("a", 0)])) == []
    watch.take(ClusterSnapshot(3, 0.5, []))
    assert watch.silence("a", 0) is None
    assert watch.take(ClusterSnapshot(4, 0.5, [sight("a", 0)])) == []
    assert watch.silence("a", 0.5) == 4.5


# Against the installed distributed


def test_the_scheduler_knows_who_is_there(client: Client, addresses: list[str]) -> None:
    look = look_at_workers(client, {})
    assert sorted(sighting.worker for sighting in look.sightings) == addresses
    for sighting in look.sightings:
        assert abs(look.at - sighting.last_seen) < 60
        assert not sighting.paused
        assert sighting.limit == 0 and sighting.used > 10**6
    assert look_at_workers(client, {"GPU": 1}).sightings == []


def test_a_stopped_worker_is_found_and_replaced(client: Client, addresses: list[str]) -> None:
    frozen, other = addresses
    os.kill(client.run(os.getpid, workers=[frozen])[frozen], signal.SIGSTOP)
    task = client.submit(abs, -1, workers=[frozen], allow_other_workers=True)
    heard: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
    handle = JobHandle("memory://work", "job", epoch=1, pin=SnapshotPin(snapshot="sha256:one"))
    with ClusterMonitor(client, handle, {}, 1.0, heard.put) as vigil:
        # On a busy machine the other one may be silent for a second, too.
        while not isinstance(event := heard.get(timeout=120)(), WorkerFrozen) or event.worker != frozen:
            assert not isinstance(event, Running) or event.tasks == ()  # none of that job
        assert event.silent > 1
        silence = vigil.silence(frozen)
        assert silence is not None and silence >= event.silent
        assert (vigil.silence(other) or 0) < event.silent
    restart_worker(client, frozen)
    assert frozen not in client.scheduler_info(n_workers=-1)["workers"]
    assert task.result(timeout=120) == 1, "its tasks go elsewhere"
    client.wait_for_workers(2, timeout=120)
    assert frozen not in client.run(os.getpid)
    restart_worker(client, frozen)  # it is gone: nothing happens


def test_a_worker_that_is_well_hears_of_it_before_it_finds_out(client: Client, addresses: list[str]) -> None:
    """By a heartbeat: then it would close its nanny, and nobody would start another."""
    worker = addresses[0]
    client.run(_beat_all_the_time, workers=[worker])
    restart_worker(client, worker)
    client.wait_for_workers(2, timeout=120)
    assert worker not in client.run(os.getpid)


def _beat_all_the_time(dask_worker: Worker) -> None:
    dask_worker.periodic_callbacks["heartbeat"].callback_time = 5


@ANSWER_SECONDS.override(1.5)
def test_a_stopped_worker_keeps_nobody_waiting(
    client: Client, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that waited for it would be deaf to the news that it is frozen."""
    monkeypatch.setattr(resource_tags, "ANSWER_SECONDS", 0.3)
    frozen = addresses[0]
    process = client.run(os.getpid, workers=[frozen])[frozen]
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            resource_tags.grant_tags(client, frozen, {"token": 1})
        assert process_setup.set_up_processes(client).admit(addresses) == {addresses[1]}
    finally:
        os.kill(process, signal.SIGCONT)
    deadline = time.monotonic() + 120
    while client.scheduler_info(n_workers=-1)["workers"][frozen]["resources"].get("token") != 1:
        assert time.monotonic() < deadline, "it hears of the token as soon as it wakes"
        time.sleep(0.02)
    resource_tags.grant_tags(client, frozen, {"token": 0})


def test_a_scheduler_remembers_few_keys(client: Client) -> None:
    client.run_on_scheduler(_remember_keys)
    assert len(look_at_workers(client, {}).sightings) == 2
    assert client.run_on_scheduler(lambda: key_split.cache_info().currsize) < 10_000


def _remember_keys() -> None:
    for number in range(20_000):
        key_split(("job", number))
