"""What is written down when a partition is committed."""

from __future__ import annotations

from daskinfer.spec.section import Section


class StageTrail(Section):
    """What one stage did for one partition, summed over its microbatches."""

    stage: int
    """Stage number."""
    microbatches: int
    """Microbatches computed."""
    compute: float
    """Seconds inside the model."""
    receive: float
    """Seconds reading and checking activations."""
    send: float
    """Seconds writing activations."""
    out_of_memory: int = 0
    """Times that a microbatch did not fit the device and was run in smaller parts."""
    device_peak: int = 0
    """Most bytes that a worker held on its device; 0 on CPUs."""
    workers: tuple[str, ...]
    """Who computed it."""


class CommitRecord(Section):
    """Proof that a partition is done; a partition without one does not exist."""

    job: str
    """Job id."""
    snapshot: str
    """Snapshot that every stage of every microbatch computed with."""
    partition: int
    """Partition number."""
    generation: int = 0
    """Number of that snapshot among the job's."""
    epoch: int
    """Life of the driver that asked for it."""
    round: int = 0
    """Retry that computed some of its rows last; 0 where none has."""
    member: str = ""
    """Id of that driver, where it was a member of several."""
    rows_in: int
    """Rows of the partition."""
    rows_out: int
    """Rows written."""
    rows_quarantined: int
    """Rows refused; `rows_out + rows_quarantined == rows_in`."""
    rows_truncated: int = 0
    """Rows written whose text was longer than a row may be."""
    rows_not_finite: int = 0
    """Rows for which the model returned NaN or infinity, quarantined or not."""
    tokens: int
    """Tokens computed, padding excluded."""
    padded_tokens: int
    """Tokens computed, padding included."""
    read: float = 0.0
    """Seconds reading its rows."""
    write: float = 0.0
    """Seconds writing its results, without this record."""
    microbatches: tuple[tuple[int, int], ...]
    """(rows, padded length) of every microbatch: what decided the bits."""
    digest: str
    """xxh3-128 of the written part, hex."""
    path: str
    """Written part, relative to the output."""
    size: int = 0
    """Bytes of it; for Zarr those of its values before they are chunks. 0 where an older version wrote it."""
    rows_digest: str = ""
    """Digest of its rows as they were read, those refused left out; see `daskinfer.storage.row_digest`."""
    trail: tuple[StageTrail, ...]
    """Where the time went."""
