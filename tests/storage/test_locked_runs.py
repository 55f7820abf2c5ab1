"""Nobody ever misses a byte of what they hold, however many collect and publish, and whatever goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.ids import make_nonce
from daskinfer.storage.registry import locks
from daskinfer.testing.contracts.storefaults import RATES
from daskinfer.testing.stress.campaigns import campaign_size
from daskinfer.testing.stress.lockedruns import FEW_ACTORS, MANY_ACTORS, Outcome, run_in_processes, run_in_threads

pytestmark = [
    pytest.mark.late,
    pytest.mark.filterwarnings("ignore::daskinfer.errors.MissingEvent"),
    pytest.mark.timeout(campaign_size(600, 3600)),
]

# A share of 1,000 runs, or of the 10,000 of a campaign, and how many of them one registry sees.
THREADS = {"memory": (640, 5_000, 80), "local": (290, 3_500, 80), "s3": (20, 450, 50)}
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


def test_in_threads(any_store: str, tmp_path: Path) -> None:
    kind = any_store.partition("://")[0] if "://" in any_store else "local"
    counts = FEW_ACTORS if kind == "s3" else MANY_ACTORS

    def run(turn: int, runs: int) -> Outcome:
        return run_in_threads(f"{any_store}/{turn}", tmp_path / f"diary-{turn}", runs, RATES, turn, counts)

    outcome = repeat(THREADS[kind], run)
    assert outcome.violations == []
    assert kind == "s3" or all(outcome.counts[each] for each in ("published", "moved", "swept", "gone"))


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_in_processes_that_are_killed(request: pytest.FixtureRequest, tmp_path: Path, place: str) -> None:
    root = str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3_url')}/{make_nonce()}"

    def run(turn: int, runs: int) -> Outcome:
        return run_in_processes(f"{root}/{turn}", tmp_path / f"diary-{turn}", runs, KILLS, turn * 1000)

    outcome = repeat(PROCESSES[place], run)
    assert outcome.violations == []
    assert place == "s3" or outcome.counts["killed"]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_without_the_look_after_the_lock_bytes_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(locks, "_await_verdict", lambda registry, snapshot: "live")
    url = str(tmp_path / "store") if place == "local" else f"memory://{make_nonce()}"
    outcome = run_in_threads(url, tmp_path / "diary", 1000, RATES, 0)
    print(dict(outcome.counts))
    assert any("misses bytes of" in violation for violation in outcome.violations)
