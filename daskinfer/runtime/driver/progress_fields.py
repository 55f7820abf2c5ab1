"""The fields of `Progress` that are counted."""

from __future__ import annotations

from typing import Any

from daskinfer.runtime.driver.run_progress import RunProgress


def count_progress(progress: RunProgress, running_seconds: float) -> dict[str, Any]:
    """Return the fields of a `Progress` that count rows, rates and loaded bytes.

    Parameters
    ----------
    progress
        What the run has committed, and what it has in work.
    running_seconds
        Seconds since the first partition began; 0 before it.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> fields = count_progress(RunProgress(make_plan(), rows_total=10), running_seconds=0)
    >>> fields["rows_total"], fields["rows_done"], fields["eta"]
    (10, 0, None)
    """
    in_work = progress.advance.rows
    computed = progress.rows_this_run + in_work
    rate = computed / running_seconds if running_seconds > 0 else 0.0
    return {
        "rows_total": progress.rows_total,
        "rows_done": progress.rows_done,
        "rows_quarantined": progress.rows_left,
        "rows_truncated": progress.rows_truncated,
        "rows_not_finite": progress.rows_not_finite,
        "rows_this_run": progress.rows_this_run,
        "rows_per_second": rate,
        "rows_in_work": in_work,
        "eta": max(0, progress.rows_total - progress.rows_done - in_work) / rate if rate > 0 else None,
        "devices": progress.devices(),
        "loaded_bytes": progress.loads.loaded_bytes,
        "total_bytes": progress.loads.total_bytes,
        "loaded_shards": progress.loads.loaded_shards,
        "total_shards": progress.loads.total_shards,
    }
