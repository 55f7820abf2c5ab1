"""Nobody ever misses a byte of what they hold, however many collect and publish, and whatever goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.testing.campaigns import campaign_size
from daskinfer.testing.faultyfs import FaultSchedule
from daskinfer.testing.lockedruns import Outcome, run_in_threads
from daskinfer.testing.storefaults import RATES

pytestmark = [pytest.mark.filterwarnings("ignore::daskinfer.errors.MissingEvent"), pytest.mark.timeout(3600)]

# A share of 1,000 runs, or of the 10,000 of a campaign, and how many of them one registry sees.
THREADS = {"memory": (640, 5_000, 160), "local": (290, 3_500, 100), "s3": (20, 450, 50)}
PROCESSES = {"local": (45, 900, 150), "s3": (5, 150, 50)}
KILLS = {**RATES, "kill": 0.0005}


def repeat(size: tuple[int, int, int], run: Callable[[int, int], Outcome]) -> Outcome:
    """Do as many runs as asked for, on one registry after the other."""
    begun, outcome, turn = time.perf_counter(), Outcome(), 0
    wanted = campaign_size(*size[:2])
    while (left := wanted - outcome.counts["run"]) > 0:
        outcome.add(run(turn, min(left, size[2])))
        turn += 1
    print(f"{turn} registries, {time.perf_counter() - begun:.0f} s:", dict(sorted(outcome.counts.items())))
    return outcome


def kind_of(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "local"


def test_in_threads(any_store: str, tmp_path: Path) -> None:
    def run(turn: int, runs: int) -> Outcome:
        schedule = FaultSchedule(turn, RATES)
        return run_in_threads(f"{any_store}/{turn}", tmp_path / f"diary-{turn}", runs, schedule, turn)

    outcome = repeat(THREADS[kind_of(any_store)], run)
    assert outcome.violations == []
    assert all(outcome.counts[kind] for kind in ("run", "published", "moved", "swept"))
