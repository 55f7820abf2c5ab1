from __future__ import annotations

import time
from typing import Any

from distributed import Client

from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.reporting import LOADING_TOPIC, LoadMeter
from daskinfer.runtime.driver.shard_loading import ShardLoading
from daskinfer.spec.job.generation import SnapshotPin


def totals(loads: ShardLoading) -> tuple[int, int, int, int]:
    return loads.loaded_bytes, loads.total_bytes, loads.loaded_shards, loads.total_shards


def test_every_worker_counts_for_its_own_stage() -> None:
    loads = ShardLoading([100, 50])
    assert totals(loads) == (0, 0, 0, 0)
    loads.begin(0, "a")
    loads.begin(1, "b")
    loads.begin(1, "c")
    loads.tell(0, "a", 30)
    loads.tell(1, "b", 10)
    assert totals(loads) == (40, 200, 0, 3)
    loads.tell(0, "b", 40)  # a stage that it was asked for before
    loads.tell(0, "stranger", 40)
    loads.tell(1, "b", 60)  # read again after damage
    loads.finish(1, "c")
    assert totals(loads) == (130, 200, 1, 3)
    loads.tell(1, "c", 20)  # overtaken by the end
    assert totals(loads) == (130, 200, 1, 3)
    loads.drop("b")
    loads.finish(1, "b")
    assert totals(loads) == (80, 150, 1, 2)


def test_a_worker_may_hold_several_shards() -> None:
    loads = ShardLoading([100, 50])
    loads.begin(0, "a")
    loads.begin(1, "a")
    loads.finish(1, "a")
    assert totals(loads) == (50, 150, 1, 2)
    loads.drop("a", 1)
    assert totals(loads) == (0, 100, 0, 1)
    loads.drop("a")
    assert totals(loads) == (0, 0, 0, 0)


def count(handle: JobHandle, chunks: int) -> float:
    """Load so many chunks, and return how many seconds that took."""
    began = time.monotonic()
    meter = LoadMeter(handle, 1)
    for _ in range(chunks):
        meter.add(10)
        time.sleep(0.001)
    return time.monotonic() - began


def test_workers_tell_seldom_and_name_their_job(client: Client, addresses: list[str]) -> None:
    heard: list[dict[str, Any]] = []
    client.subscribe_topic(LOADING_TOPIC, lambda event: heard.append(event[1]))
    try:
        handles = [
            JobHandle("work", name, epoch, SnapshotPin(snapshot="sha256:1"))
            for name, epoch in (("one", 1), ("other", 2))
        ]
        futures = [
            client.submit(count, handle, 700, workers=[worker], pure=False)
            for handle, worker in zip(handles, addresses, strict=True)
        ]
        seconds = max(client.gather(futures))
        deadline = time.monotonic() + 120
        while len({message["job"] for message in heard}) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        client.unsubscribe_topic(LOADING_TOPIC)
    for handle, worker in zip(handles, addresses, strict=True):
        mine = [message for message in heard if message["job"] == handle.job]
        assert {(message["epoch"], message["stage"], message["worker"]) for message in mine} == {
            (handle.epoch, 1, worker)
        }
        told = [message["bytes"] for message in mine]
        assert told == sorted(told) and 0 < told[0] < 7000
        assert len(told) <= 2 + 5 * seconds
