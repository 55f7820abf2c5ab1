"""How a run stands, for tests of whatever shows it."""

from __future__ import annotations

from daskinfer.spec.job.record import Progress

RUNNING = Progress(
    phase="running",
    job="j",
    rows_total=10_000,
    rows_done=6_144,
    rows_quarantined=2,
    seconds=8.2,
    rows_per_second=1_234.4,
    eta=3.1,
    busy=(0.87, 0.5),
)
