"""The rules for standbys, doubles and replicas."""

from __future__ import annotations

import pytest

from daskinfer.runtime.state_machine.workers.placement_policy import (
    OBSERVED_COMMITS,
    OBSERVED_SECONDS,
    PAYS,
    StageUtilization,
    choose_double,
    choose_warm,
    fits,
)
from daskinfer.spec.plan import DeviceShape, WorkerShape
from tests.support.factories import make_record, make_stages


def make_worker(memory: int, device: DeviceShape | None = None, name: str = "w") -> WorkerShape:
    shape = WorkerShape(address=name, threads=1, memory=memory, resources={"GPU": 1})
    return shape if device is None else shape.model_copy(update={"device": device})


def test_shards_take_a_share_of_the_memory_once_for_every_snapshot() -> None:
    stages = make_stages(40, 30)
    assert fits(stages, make_worker(100), copies=1)
    assert not fits(stages, make_worker(99), copies=1)
    assert not fits(stages, make_worker(199), copies=2)
    assert fits(stages, make_worker(200), copies=2)
    assert fits(stages, make_worker(0), copies=2)  # unknown


def test_what_counts_is_the_memory_of_the_device() -> None:
    gpu = DeviceShape(kind="cuda", name="a GPU", memory=50, threads=1, bf16=True, fp16=True)
    assert not fits(make_stages(40), make_worker(1000, gpu), copies=1)


def test_an_offloaded_stage_shares_its_device_with_none() -> None:
    stages = make_stages(400, 1, offload=0)
    assert fits(stages[:1], make_worker(100), copies=1)
    assert not fits(stages, make_worker(100), copies=1)


@pytest.mark.parametrize(
    ("memory", "holders", "warm", "expected"),
    [
        (1000, [1, 1, 1], [0, 0, 0], (0, 1, 2)),
        (0, [1, 1, 1], [0, 0, 0], (0, 1, 2)),
        (100, [1, 1, 1], [0, 0, 0], (1,)),  # the largest; nothing else fits beside it
        (100, [1, 2, 1], [0, 0, 0], (0, 2)),  # those that have one worker
        (100, [1, 1, 1], [0, 1, 0], (0, 2)),  # what another standby keeps comes last
        (30, [1, 1, 1], [0, 0, 0], (0,)),  # what fits at all
    ],
)
def test_a_standby_keeps_what_is_needed_most(
    memory: int, holders: list[int], warm: list[int], expected: tuple[int, ...]
) -> None:
    assert choose_warm(make_stages(20, 60, 30), make_worker(memory), holders, warm, 1) == expected


def test_the_least_loaded_worker_with_room_doubles() -> None:
    stages = make_stages(20, 20, 20)
    workers = {name: make_worker(100, name=name) for name in ("a", "b", "c")}
    # b shares its stage with c.
    held = {"a": [0], "b": [1], "c": [1]}
    assert choose_double(stages, 2, held, workers, [1, 2, 0], 1) == "b"
    workers["b"] = make_worker(50, name="b")
    assert choose_double(stages, 2, held, workers, [1, 2, 0], 1) == "c"
    assert choose_double(stages, 2, held, workers, [1, 2, 0], 2) is None  # two snapshots of both need 80 of 70
    assert choose_double(stages, 2, {"b": [1]}, workers, [1, 2, 0], 1) is None
    assert choose_double(stages, 2, {"a": [0, 2], "c": [1]}, workers, [1, 1, 0], 1) == "a"  # it keeps the shard warm


def make_meter(seconds: tuple[float, ...], commits: int = 10) -> StageUtilization:
    """A meter with so many commits, each of which took the stages so many seconds."""
    meter = StageUtilization(len(seconds))
    meter.restart(100.0)
    record = make_record(0, workers=tuple("abc"[: len(seconds)]))
    trail = tuple(
        each.model_copy(update={"compute": spent, "receive": 0.0, "send": 0.0})
        for each, spent in zip(record.trail, seconds, strict=True)
    )
    for _ in range(commits):
        meter.note(record.model_copy(update={"trail": trail}))
    return meter


def test_the_bottleneck_gets_a_replica_when_that_saves_more_than_loading_costs() -> None:
    meter = make_meter((0.3, 0.9))  # in 10 s of which stage 1 is at work for nine
    growth = meter.choose_growth([1, 1], spares=1, left=100, load_seconds=10.0, now=110.0)
    assert growth is not None
    assert growth.stages == (1,)
    assert growth.busy == pytest.approx(0.9)
    assert growth.seconds == pytest.approx(50.0)  # 100 partitions of 1 s in half the time
    assert meter.choose_growth([1, 1], spares=1, left=100, load_seconds=50.0 / PAYS, now=110.0) is None
    assert meter.choose_growth([1, 1], spares=0, left=100, load_seconds=1.0, now=110.0) is None


def test_a_replica_helps_only_until_the_next_bottleneck() -> None:
    growth = make_meter((0.8, 0.9)).choose_growth([1, 1], 1, left=100, load_seconds=1.0, now=110.0)
    assert growth is not None and growth.seconds == pytest.approx(100 / 9)


def test_equal_bottlenecks_grow_together_or_not_at_all() -> None:
    meter = make_meter((0.9, 0.9))
    assert meter.choose_growth([1, 1], 1, left=100, load_seconds=1.0, now=110.0) is None
    growth = meter.choose_growth([1, 1], 2, left=100, load_seconds=1.0, now=110.0)
    assert growth is not None and sorted(growth.stages) == [0, 1]


def test_spare_workers_that_save_nothing_are_left_alone() -> None:
    growth = make_meter((0.9, 0.9, 0.1)).choose_growth([1, 1, 1], 3, left=100, load_seconds=1.0, now=110.0)
    assert growth is not None and sorted(growth.stages) == [0, 1]


def test_nothing_is_concluded_from_too_little() -> None:
    assert make_meter((0.1, 0.9), OBSERVED_COMMITS - 1).choose_growth([1, 1], 1, 1000, 1.0, 110.0) is None
    assert make_meter((0.1, 0.9)).choose_growth([1, 1], 1, 1000, 1.0, 100 + OBSERVED_SECONDS / 2) is None
    # Where no stage is busy, something else limits the job.
    assert make_meter((0.1, 0.5)).choose_growth([1, 1], 1, 1000, 1.0, 110.0) is None
