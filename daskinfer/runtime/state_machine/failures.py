"""Builds the errors that end a job."""

from __future__ import annotations

from collections.abc import Collection

from daskinfer.errors import DaskinferError, JobFailed, RejectBudgetExceeded
from daskinfer.runtime.protocol.actions import describe
from daskinfer.runtime.protocol.events import ShardFailed
from daskinfer.units import format_amount


def refuse_losses(losses: int, partitions: Collection[int]) -> JobFailed:
    """Return what ends a job whose workers die one after the other with these partitions in progress.

    Examples
    --------
    >>> print(refuse_losses(5, {7, 3}).message)
    5 workers died without one partition being committed in between (partitions in progress: 3, 7)
    """
    work = ", ".join(map(str, sorted(partitions))) or "none"
    return JobFailed(
        f"{losses} workers died without one partition being committed in between (partitions in progress: {work})",
        hint="A row may crash the model or exhaust memory; look at the workers' logs, then run again.",
    )


def refuse_load(event: ShardFailed) -> DaskinferError:
    """Return what ends a job, or a candidate, whose shard could not be loaded.

    Examples
    --------
    >>> print(refuse_load(ShardFailed(stage=1, worker="tcp://a:1", error=MemoryError("no room"))))
    stage 1 could not be loaded on tcp://a:1: MemoryError: no room
    """
    where = f"stage {event.stage} could not be loaded on {event.worker}"
    if isinstance(event.error, DaskinferError):
        return type(event.error)(f"{where}: {event.error.message}", hint=event.error.hint)
    return JobFailed(f"{where}: {describe(event.error)}")


def refuse_rejects(rejects: int, limit: int) -> RejectBudgetExceeded:
    """Return what ends a job with so many quarantined rows.

    Examples
    --------
    >>> print(refuse_rejects(1, limit=0).message)
    1 row is quarantined; errors.max_rows allows 0
    """
    return RejectBudgetExceeded(
        f"{format_amount(rejects, 'row')} {'is' if rejects == 1 else 'are'} quarantined; errors.max_rows allows {limit:,}",
        hint="Look at the quarantine. Raise errors.max_rows; or correct its rows in place, and `daskinfer retry` finishes the job "
        "with them.",
    )
