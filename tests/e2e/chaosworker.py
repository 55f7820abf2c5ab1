"""What every worker under fire is preloaded with: stores that misbehave, and a diary of what was computed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from daskinfer.graphs import tasks
from daskinfer.testing.faultyfs import FaultSchedule

RATES = {"drop": 0.01, "lose": 0.02, "delay": 0.05, "conflict": 0.01, "busy": 0.01}


def dask_setup(worker: Any) -> None:
    """Begin, in the worker's process."""
    seed = int(os.environ["CHAOS_SEED"]) + os.getpid()
    FaultSchedule(seed, RATES, delay_seconds=0.05).install()
    diary = Path(os.environ["CHAOS_DIARY"]) / f"{os.getpid()}-{time.time_ns()}"
    run_stage = tasks.run_stage

    def run_and_note(handle: Any, stage: int, partition: int, number: int, *words: Any) -> Any:
        result = run_stage(handle, stage, partition, number, *words)
        with diary.open("a") as file:
            file.write(f"{partition}-{number}-{stage}\n")
        return result

    tasks.run_stage = run_and_note  # type: ignore[assignment]
