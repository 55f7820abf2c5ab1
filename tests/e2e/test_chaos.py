"""Chaos: whatever is killed, frozen, lost or damaged in mid-run, the output is that of an undisturbed run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from daskinfer import api
from daskinfer.testing.models.tinymodels import make_tiny_bert
from daskinfer.testing.stress.campaigns import campaign_size
from tests.e2e.chaos import (
    KINDS,
    KINDS_OF,
    PARTITION,
    ROWS,
    STAGES,
    Cluster,
    Outcome,
    Storm,
    draw_faults,
    open_processes,
)
from tests.e2e.conftest import Bench, make_bench

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.timeout(1200)]

SCHEDULES = (*range(78, 82), *range(85, campaign_size(86, 281)))
"""Seeds; the first five have faults of every kind."""
REJECTED = 2
FAULTS = 2
"""Of a schedule, one after the other."""
TRANSPORTS = ("zarr", "direct")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_processes(tmp_path_factory.mktemp("chaos"), seed=5) as processes:
        yield processes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, cluster: Cluster) -> Bench:
    """A job of three stages, two bad rows, two versions, and `calm.zarr`: what it writes when nothing disturbs it."""
    bench = make_bench(tmp_path_factory.mktemp("storm"), tiny_model, ROWS - REJECTED)
    rows = (bench.folder / "in.jsonl").read_text().splitlines(keepends=True)
    for place in (100, 700):
        rows.insert(place, '{"id": "bad", "text": null}\n')
    (bench.folder / "in.jsonl").write_text("".join(rows))
    other = make_tiny_bert(bench.folder / "other", layers=4, seed=1)
    api.publish("tiny", str(other), registry=str(bench.folder / "work/registry"))
    words = {"input__partition_rows": PARTITION, "pipeline__stages": STAGES, "errors__max_rows": REJECTED}
    api.run(bench.recipe("calm.zarr", **words, cluster__local={"workers": STAGES}))
    bench.write_recipe(**words, cluster__address=cluster.address, recovery__frozen=6)
    return bench


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[Outcome]]:
    """What the schedules did to their jobs, summed up when this process has had its share of them."""
    outcomes: list[Outcome] = []
    yield outcomes
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    incidents = sum((outcome.incidents for outcome in outcomes), Counter[str]())
    seconds = [second for outcome in outcomes for second in outcome.recovery_seconds] or [0.0]
    shares = [outcome.recomputed for outcome in outcomes] or [0.0]
    print(
        f"{len(outcomes)} schedules: {faults.total()} faults {dict(faults)}; incidents {dict(incidents)}; "
        f"recomputed {sum(shares) / len(shares):.1%}, at most {max(shares):.1%}; "
        f"recovery {median(seconds):.1f} s, at most {max(seconds):.1f} s"
    )


@pytest.mark.parametrize("seed", SCHEDULES)
def test_output_is_the_same_whatever_happens(
    bench: Bench, cluster: Cluster, outcomes: list[Outcome], seed: int
) -> None:
    transport = TRANSPORTS[seed % 2]
    storm = Storm(bench, cluster, f"storm-{seed}.zarr", transport)
    began = time.monotonic()
    outcomes.append(storm.rage(draw_faults(seed, FAULTS, transport)))
    storm.check(bench.folder / "calm.zarr", REJECTED)
    print(f"{seed}, {time.monotonic() - began:.0f} s: {outcomes[-1]}")


def test_the_schedules_have_faults_of_every_kind() -> None:
    drawn = {fault.kind for seed in SCHEDULES for fault in draw_faults(seed, FAULTS, TRANSPORTS[seed % 2])}
    assert drawn == set(KINDS).union(*KINDS_OF.values())
