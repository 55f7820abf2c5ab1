"""What must not be: a worker with another snapshot or other code, rows of a worker that never acknowledged. Pure."""

from __future__ import annotations

from collections.abc import Callable

from daskinfer.errors import DaskinferError, JobFailed, SnapshotSkew
from daskinfer.runtime.protocol.events import ShardAck
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin


def find_mismatch(ack: ShardAck, pin: SnapshotPin, source: str) -> DaskinferError | None:
    """Return what is wrong with a worker's word: another snapshot than the pin's, or other code than the driver's."""
    if ack.snapshot != pin.snapshot:
        return SnapshotSkew(f"{ack.worker} loaded {ack.snapshot} for stage {ack.stage}, not {pin.snapshot}")
    if ack.source != source:
        return JobFailed(
            f"worker {ack.worker} runs other daskinfer code than the driver",
            hint="Install the same daskinfer on the driver, the scheduler and all workers.",
        )
    return None


def find_stranger(record: CommitRecord, acknowledged: Callable[[int, int], set[str]]) -> DaskinferError | None:
    """Return what is wrong with a commit: a stage was computed by who never acknowledged its shard of the generation.

    Parameters
    ----------
    record
        The commit.
    acknowledged
        (generation, stage) -> every worker that ever did.
    """
    for trail in record.trail:
        if stranger := set(trail.workers) - acknowledged(record.generation, trail.stage):
            return SnapshotSkew(
                f"partition {record.partition}: stage {trail.stage} ran on {min(stranger)}, "
                "which never acknowledged the snapshot"
            )
    return None
