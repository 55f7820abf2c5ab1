"""Why the driver's logic gives up, in words. Pure."""

from __future__ import annotations

from collections.abc import Collection

from daskinfer.errors import DaskinferError, JobFailed, RejectBudgetExceeded, SnapshotSkew
from daskinfer.runtime.crew import Crew
from daskinfer.runtime.messages import ShardAck
from daskinfer.spec.generation import Pin
from daskinfer.spec.job import CommitRecord


def refuse_losses(losses: int, partitions: Collection[int]) -> JobFailed:
    """Return what ends a job whose workers die one after the other with these partitions in work."""
    work = ", ".join(map(str, sorted(partitions))) or "none"
    return JobFailed(
        f"{losses} workers died without one partition being committed in between (partitions in work: {work})",
        hint="A row may crash the model or exhaust memory; look at the workers' logs, then run again.",
    )


def refuse_ack(ack: ShardAck, pin: Pin, source: str) -> DaskinferError | None:
    """Return what is wrong with what a worker acknowledges, if anything is."""
    if ack.snapshot != pin.snapshot:
        return SnapshotSkew(f"{ack.worker} loaded {ack.snapshot} for stage {ack.stage}, not {pin.snapshot}")
    if ack.source != source:
        return JobFailed(
            f"worker {ack.worker} runs other daskinfer code than the driver",
            hint="Install the same daskinfer on the driver, the scheduler and all workers.",
        )
    return None


def refuse_absence(stage: int, patience: float, wanted: str) -> JobFailed:
    """Return what ends a job whose stage has had no worker for so many seconds."""
    return JobFailed(
        f"stage {stage} has had no worker for {patience:.0f} s: none is left that declares {wanted}",
        hint="Start a worker with these resources, then run the same command again.",
    )


def refuse_strangers(record: CommitRecord, crew: Crew) -> SnapshotSkew | None:
    """Return what is wrong with who computed a partition, if anything is."""
    for trail in record.trail:
        if stranger := set(trail.workers) - crew.acknowledged(record.generation, trail.stage):
            return SnapshotSkew(
                f"partition {record.partition}: stage {trail.stage} ran on {min(stranger)}, "
                "which never acknowledged the snapshot"
            )
    return None


def refuse_rejects(rejects: int, limit: int) -> RejectBudgetExceeded:
    """Return what ends a job with so many quarantined rows."""
    return RejectBudgetExceeded(
        f"{rejects} rows are quarantined; errors.max_rows allows {limit}",
        hint="Look at the quarantine, mend the input or raise errors.max_rows, then run again.",
    )
