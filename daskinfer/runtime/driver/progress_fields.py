"""The fields of `Progress` that are counted."""

from __future__ import annotations

from typing import Any

from daskinfer.runtime.driver.run_progress import RunProgress


def count_progress(ledger: RunProgress, running_seconds: float) -> dict[str, Any]:
    """Return the fields of a `Progress` that count rows, rates and loaded bytes.

    Parameters
    ----------
    ledger
        What the run has committed, and what it has in work.
    running_seconds
        Seconds since the first partition began; 0 before it.
    """
    in_work = ledger.advance.rows
    computed = ledger.rows_this_run + in_work
    rate = computed / running_seconds if running_seconds > 0 else 0.0
    return {
        "rows_total": ledger.rows_total,
        "rows_done": ledger.rows_done,
        "rows_quarantined": ledger.rows_left,
        "rows_truncated": ledger.rows_truncated,
        "rows_not_finite": ledger.rows_not_finite,
        "rows_this_run": ledger.rows_this_run,
        "rows_per_second": rate,
        "rows_in_work": in_work,
        "eta": max(0, ledger.rows_total - ledger.rows_done - in_work) / rate if rate > 0 else None,
        "devices": ledger.devices(),
        "loaded_bytes": ledger.loads.loaded_bytes,
        "total_bytes": ledger.loads.total_bytes,
        "loaded_shards": ledger.loads.loaded_shards,
        "total_shards": ledger.loads.total_shards,
    }
