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


def slow_down(patch: pytest.MonkeyPatch, log: str, seconds: float) -> None:
    """Let a worker sleep in each of its microbatches, and write a letter for each."""
    from daskinfer.models.execution.stage import Stage

    run_stage = Stage.run

    def sleepy(self: Stage, *words: Any) -> Any:
        with Path(log).open("a") as file:
            file.write("x")
        time.sleep(seconds)
        return run_stage(self, *words)

    patch.setattr(Stage, "run", sleepy)


def sit_on_the_first(patch: pytest.MonkeyPatch, go: str) -> None:
    """Let a worker not begin with its first microbatch until it may."""
    from daskinfer.models.execution.stage import Stage

    run_stage = Stage.run
    first = [True]

    def held(self: Stage, *words: Any) -> Any:
        while first and not Path(go).exists():
            time.sleep(0.02)
        first.clear()
        return run_stage(self, *words)

    patch.setattr(Stage, "run", held)


def test_a_slow_worker_gets_less_work(bench: Bench, scheduler: str) -> None:
    log = bench.folder / "log"
    with patched_workers(scheduler, slow_down, str(log), 1.0, only=0):
        report = run(bench.recipe(**RECIPE), scheduler)
    assert report.rows_out == 300
    whole = sum(len(record["microbatches"]) for record in commits(bench.folder / "out.zarr").values())
    assert 0 < log.stat().st_size < whole / 3


def test_what_a_slow_worker_sits_on_is_started_twice(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bench.recipe("whole.zarr", **RECIPE), scheduler)
    monkeypatch.setattr(microbatch_durations, "SLOW_SECONDS", 1.0)
    go = bench.folder / "go"
    with patched_workers(scheduler, sit_on_the_first, str(go), only=0):
        try:
            report = run(bench.recipe(**RECIPE), scheduler)
        finally:
            go.touch()  # only now
        assert report.counters["second_starts"] >= 1
        assert {incident.kind for incident in report.incidents} == {"straggler"}
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "whole.zarr")
