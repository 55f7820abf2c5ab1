"""A worker that is slow: it gets less work, and what it sits on is started a second time elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from daskinfer.runtime.state_machine.faults import microbatch_durations
from tests.e2e.conftest import Bench, data_bytes, run
from tests.e2e.faults import commits, patched_workers

pytestmark = [pytest.mark.slow, pytest.mark.late]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

RECIPE: dict[str, Any] = {"pipeline__stages": 1, "pipeline__microbatch_tokens": 128}


def slow_down(patch: pytest.MonkeyPatch, log: str, seconds: float, often: int) -> None:
    """Let a worker sleep in the first so many of its microbatches, and write a letter for each of all of them."""
    from daskinfer.models.execution.stage import Stage

    run_stage = Stage.run

    def sleepy(self: Stage, *words: Any) -> Any:
        with Path(log).open("a") as file:
            file.write("x")
        if Path(log).stat().st_size <= often:
            time.sleep(seconds)
        return run_stage(self, *words)

    patch.setattr(Stage, "run", sleepy)


def test_a_slow_worker_gets_less_work(bench: Bench, scheduler: str) -> None:
    log = bench.folder / "log"
    with patched_workers(scheduler, slow_down, str(log), 0.3, 10**6, only=0):
        report = run(bench.recipe(**RECIPE), scheduler)
    assert report.rows_out == 300
    whole = sum(len(record["microbatches"]) for record in commits(bench.folder / "out.zarr").values())
    assert 0 < log.stat().st_size < whole / 3


def test_what_a_slow_worker_sits_on_is_started_twice(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bench.recipe("whole.zarr", **RECIPE), scheduler)
    monkeypatch.setattr(microbatch_durations, "SLOW_SECONDS", 1.0)
    began = time.monotonic()
    with patched_workers(scheduler, slow_down, str(bench.folder / "log"), 30.0, 1, only=0):
        report = run(bench.recipe(**RECIPE), scheduler)
        assert report.counters["second_starts"] >= 1
        assert time.monotonic() - began < 30
        assert {incident.kind for incident in report.incidents} == {"straggler"}
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "whole.zarr")
