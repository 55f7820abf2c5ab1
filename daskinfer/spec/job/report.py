"""What a run did: the report as it is stored and printed."""

from __future__ import annotations

from typing import Literal

from daskinfer.spec.job.membership import MemberShare
from daskinfer.spec.job.retries import RetryShare
from daskinfer.spec.section import Section


class StageReport(Section):
    """What one stage did in a whole run."""

    stage: int
    """Stage number."""
    layers: str
    """Layers it owns, e.g. `0-2`."""
    shard_bytes: int
    """Bytes of its shard in the job's precision."""
    stored_bytes: int = 0
    """Bytes of its shard as the snapshot stores it."""
    offload: str = "none"
    """Where its weights wait for their turn on the device: none, cpu or disk."""
    read_bytes: int
    """Bytes read from the registry to load it, all workers together."""
    load_seconds: float
    """Longest load among its workers."""
    device: str = ""
    """What its workers compute with."""
    out_of_memory: int = 0
    """Times that a microbatch did not fit the device and was run in smaller parts."""
    device_peak: int = 0
    """Most bytes that a worker held on its device; 0 on CPUs."""
    workers: tuple[str, ...]
    """Who held it."""
    microbatches: int
    """Microbatches computed."""
    compute: float
    """Seconds inside the model, all workers together."""
    receive: float
    """Seconds receiving and checking activations."""
    send: float
    """Seconds sending activations."""
    busy: float
    """Share of the running time that its workers spent on any of these, 0 to 1."""


class Incident(Section):
    """Something that went wrong and what was done about it."""

    at: float
    """Seconds since the run began."""
    kind: str
    """worker-lost, worker-frozen, network-cut, device-failed, storage-refused, task-failed, resumed ..."""
    detail: str
    """One sentence."""
    detect_seconds: float | None = None
    """From the last sign of health until the driver knew; None where that cannot be told."""
    recover_seconds: float | None = None
    """From then until the work went on: another worker holds the stage, or the task was done again. None where there
    was nothing to recover, or it had not happened by the end."""


class SnapshotShare(Section):
    """What one snapshot computed of an output."""

    snapshot: str
    """Snapshot digest."""
    version: int | None = None
    """Its version number, where known."""
    partitions: int
    """Partitions computed on it."""
    rows: int
    """Rows of these."""


class Report(Section):
    """What a run did, whole.

    Examples
    --------
    >>> from daskinfer.api import report
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> report(finish_job("work", "labels.jsonl", rows=3).job, "work").rows_per_second
    3.0
    """

    job: str
    """Job id."""
    name: str
    """The recipe's name."""
    verdict: Literal["done", "failed", "interrupted", "over budget"]
    """How it ended."""
    message: str
    """One sentence on the verdict."""
    checkpoint: str
    """Checkpoint reference of the recipe."""
    snapshot: str
    """Snapshot digest that computed every row; where there are several, the last one."""
    snapshots: tuple[SnapshotShare, ...] = ()
    """Every snapshot that computed rows, in the order in which the job took them up."""
    version: int | None
    """Its version number, where known."""
    trial: str = ""
    """What the gate said of a canary or a shadow, in a sentence."""
    gate: str = ""
    """URL of the gate's report."""
    recipe: str
    """Recipe digest."""
    key: str
    """Job key."""
    rows_in: int
    """Rows of the input."""
    rows_out: int
    """Rows in the output."""
    rows_quarantined: int
    """Rows in the quarantine."""
    rows_truncated: int = 0
    """Rows in the output whose text was longer than `max_tokens`, and was cut."""
    rows_not_finite: int = 0
    """Rows for which the model returned NaN or infinity, quarantined or not."""
    max_tokens: int = 0
    """Longest row in tokens; 0 where rows are no texts."""
    rows_this_run: int
    """Rows committed by this run; the others were there already."""
    partitions: int
    """Partitions of the input."""
    partitions_resumed: int
    """Partitions that an earlier run had committed."""
    epoch: int
    """How many lives this job has had: drivers, and one for all members that run it together."""
    members: tuple[MemberShare, ...] = ()
    """Who did what, where several drivers ran it together."""
    tokens: int
    """Tokens computed by this run, padding excluded."""
    padded_tokens: int
    """Tokens computed by this run, padding included."""
    seconds: float
    """Whole run."""
    startup_seconds: float
    """Until the first partition could start: cluster and shards."""
    running_seconds: float
    """From then until the last commit."""
    precision: str = ""
    """Which precision it computes in, and why."""
    kernels: str = ""
    """What computes its linear layers, and why; empty where there is no choice."""
    length: str = ""
    """Why its texts are shorter than the recipe asks for, where they are."""
    sharing: str = ""
    """Which rows shared a microbatch, and why no others, where not any could."""
    left_out: str = ""
    """Outputs of the model that are not written, each with its reason."""
    stages: tuple[StageReport, ...]
    """Where the time went."""
    counters: dict[str, int]
    """workers_lost, corrupt_activations, task_failures, microbatches_recomputed."""
    incidents: tuple[Incident, ...]
    """What went wrong, and what the run recovered from."""
    rejects: tuple[str, ...]
    """The first few quarantined rows, a line each."""
    retries: tuple[RetryShare, ...] = ()
    """Retries of quarantined rows; in the report of a retry it is the last one."""
    versions: dict[str, str]
    """Python, daskinfer, torch ..."""
    output: str
    """URL of the output."""
    report: str
    """URL of the HTML report."""
    command: str
    """The command that runs or resumes it."""
    started: str
    """ISO 8601, UTC."""

    @property
    def rows_per_second(self) -> float:
        """Rows committed by this run over its running time."""
        return self.rows_this_run / self.running_seconds if self.running_seconds > 0 else 0.0
