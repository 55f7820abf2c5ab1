"""Checks that must never fail: the snapshot and the code of a worker, and its acknowledgement before it computes. Pure."""

from __future__ import annotations

from collections.abc import Callable

from daskinfer.errors import DaskinferError, JobFailed, SnapshotSkew
from daskinfer.runtime.protocol.events import ShardAck
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin


def find_mismatch(ack: ShardAck, pin: SnapshotPin, source: str) -> DaskinferError | None:
    """Return what is wrong with a worker's word: another snapshot than the pin's, or other code than the driver's.

    Examples
    --------
    >>> pin = SnapshotPin(snapshot="sha256:1")
    >>> ack = ShardAck(0, "tcp://a:1", "sha256:1", "sha256:code", read_bytes=9, seconds=0.1, device="cpu")
    >>> find_mismatch(ack, pin, "sha256:code") is None
    True
    >>> find_mismatch(ack, SnapshotPin(snapshot="sha256:2"), "sha256:code")
    SnapshotSkew('tcp://a:1 loaded sha256:1 for stage 0, not sha256:2', None)
    """
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

    Examples
    --------
    >>> from daskinfer.spec.job.commit import StageTrail
    >>> from daskinfer.storage.outputs.sink import Written
    >>> from daskinfer.testing.fixtures.jobs import make_commit, make_job, make_results
    >>> job = make_job("labels.jsonl")
    >>> trail = StageTrail(stage=0, microbatches=1, compute=1.0, receive=0.0, send=0.0, workers=("a", "b"))
    >>> record = make_commit(job, make_results(job, 0), Written("part", "00", 9)).model_copy(update={"trail": (trail,)})
    >>> find_stranger(record, lambda generation, stage: {"a"})
    SnapshotSkew('partition 0: stage 0 ran on b, which never acknowledged the snapshot', None)
    """
    for trail in record.trail:
        if stranger := set(trail.workers) - acknowledged(record.generation, trail.stage):
            return SnapshotSkew(
                f"partition {record.partition}: stage {trail.stage} ran on {min(stranger)}, "
                "which never acknowledged the snapshot"
            )
    return None
