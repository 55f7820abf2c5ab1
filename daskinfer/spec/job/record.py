"""A job as records: what it is keyed by, and how it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from daskinfer.ids import canonical_json, digest_of
from daskinfer.spec.job.commit import CommitRecord  # noqa: F401 - where it was first
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.membership import MemberStatus
from daskinfer.spec.outline import Outline
from daskinfer.spec.plan import Numerics, Plan
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.rows import InputFile
from daskinfer.spec.section import Section
from daskinfer.spec.snapshot import Resolution

SNAPSHOT = "snapshot"
"""Column of outputs whose rows may be on different snapshots."""

State = Literal["running", "stopped", "cancelled", "failed", "done", "replaced"]
Phase = Literal["preparing", "starting", "loading", "running", "sealing", "done", "failed", "stopped"]


class OutputField(Section):
    """One column that a task writes."""

    name: str
    """Column or array name."""
    kind: Literal["float32", "float64", "int64", "int32", "uint8", "bool", "string"]
    """Element type."""
    shape: tuple[int, ...] = ()
    """Shape of one row's value; () for a scalar."""


class JobRecord(Section):
    """What a job is: written once, when it is born, and read by every resume."""

    job: str
    """Job id, unique in the workspace."""
    request: str
    """Digest of recipe, inputs, code and numerics: which command this job answers."""
    recipe: Recipe
    """As it ran first, defaults filled."""
    resolution: Resolution
    """What the checkpoint reference meant; never resolved again."""
    registry: str
    """URL of the registry that the snapshot is read from."""
    inputs: str
    """Digest of the input files."""
    code: str
    """Digest of daskinfer's own source."""
    plan: Plan
    """How it is cut; decides bits."""
    outline: Outline
    """The model's layers and cuts, as every worker follows them."""
    slots: int
    """Microbatches that a partition may have."""
    fields: tuple[OutputField, ...]
    """Columns the task writes."""
    keep: dict[str, str]
    """Input columns copied to the output -> type, as the partition table names it."""
    output: str
    """Absolute URL of the output."""
    rows: int
    """Rows of the input."""
    partitions: int
    """Partitions of the input."""
    precision: str = ""
    """Why it computes in its precision; decides nothing."""
    kernels: str = ""
    """Why its linear layers are computed by those kernels; decides nothing."""
    length: str = ""
    """Why its texts are shorter than the recipe asks for, where they are; decides nothing."""
    left_out: str = ""
    """Outputs of the model that are not written, each with its reason; decides nothing."""
    created: str
    """ISO 8601, UTC."""

    @property
    def first_pin(self) -> SnapshotPin:
        """The snapshot that the job was born with."""
        found = self.resolution
        return SnapshotPin(snapshot=found.snapshot, sequence=found.sequence, version=found.version)

    @property
    def is_staged(self) -> bool:
        """Whether its parts wait in folders of their generations until the seal."""
        return self.recipe.consistency.may_change

    @property
    def key(self) -> str:
        """Digest of snapshot and request: where the snapshot stays, two jobs with one key would write the same bytes."""
        return digest_of([self.resolution.snapshot, self.request])


def digest_files(files: Iterable[InputFile]) -> str:
    """Return the identity of an input: names, sizes and etags of its files, in order.

    Examples
    --------
    >>> one, other = InputFile(url="a.jsonl", size=9, etag="1"), InputFile(url="b.jsonl", size=9, etag="1")
    >>> digest_files([one, other]) == digest_files([other, one])
    False
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(canonical_json([file.url, file.size, file.etag]))
    return f"sha256:{digest.hexdigest()}"


def make_job_request(recipe: Recipe, inputs: str, code: str, numerics: Numerics) -> str:
    """Return the digest of all that decides the output except the snapshot.

    `threads` is left out: a resume keeps the recorded plan's.

    Examples
    --------
    >>> parts = {"model": {"checkpoint": "minilm@prod"}, "input": {"url": "a.jsonl"}, "output": {"url": "a.zarr"}}
    >>> recipe = Recipe(daskinfer=1, name="demo", **parts)
    >>> versions = {"torch": "2.13.0", "transformers": "5.0.0", "tokenizers": "0.22.0"}
    >>> two, four = (Numerics(dtype="float32", attention="sdpa", threads=count, **versions) for count in (2, 4))
    >>> make_job_request(recipe, "sha256:1", "sha256:2", two) == make_job_request(recipe, "sha256:1", "sha256:2", four)
    True
    """
    return digest_of([recipe.digest, inputs, code, numerics.model_dump(mode="json", exclude={"threads", "kernels"})])


class Progress(Section):
    """How a run stands, several times a second for a terminal and every few seconds in storage.

    Examples
    --------
    >>> Progress(phase="running", rows_total=1000, rows_done=250).rows_in_work
    0
    """

    phase: Phase
    """What the driver is doing."""
    job: str = ""
    """Job id, once known."""
    member: str = ""
    """Id of the driver, where it is one of several that run the job together."""
    rows_total: int = 0
    """Rows of the input."""
    rows_done: int = 0
    """Rows committed, quarantined ones and those of earlier runs included."""
    rows_in_work: int = 0
    """Rows that are computed and wait for the rest of their partition to be committed."""
    rows_quarantined: int = 0
    """Rows refused so far."""
    rows_truncated: int = 0
    """Rows so far whose text was cut."""
    rows_not_finite: int = 0
    """Rows for which the model returned NaN or infinity, quarantined or not."""
    rows_this_run: int = 0
    """Rows that this run committed itself."""
    seconds: float = 0.0
    """Since the run began."""
    rows_per_second: float = 0.0
    """Computed by this run, over its running time."""
    eta: float | None = None
    """Seconds left, where it can be told."""
    busy: tuple[float, ...] = ()
    """Busy share of every stage, 0 to 1; nothing before the first commit."""
    devices: tuple[str, ...] = ()
    """What every stage computes on, with the most memory that it took there; "" until it is loaded."""
    loaded_bytes: int = 0
    """Bytes of shards that workers have brought in, as stored."""
    total_bytes: int = 0
    """Bytes of all their shards, as stored."""
    loaded_shards: int = 0
    """Shards that are in place."""
    total_shards: int = 0
    """Shards that are wanted: one for each worker of a stage."""
    workers: tuple[WorkerState, ...] = ()
    """What every worker does."""
    message: str = ""
    """What just happened, where it is worth a line."""
    recurs: bool = False
    """Whether the run ended in a way that the same command ends in again."""


class JobStatus(Section):
    """A job as storage shows it, without asking the driver.

    Examples
    --------
    >>> from daskinfer.api import status
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> status(finish_job("work", "labels.jsonl").job, "work").state
    'done'
    """

    job: str
    """Job id."""
    name: str
    """The recipe's name."""
    state: State
    """`stopped`: no live driver and not finished; the same command resumes it. `cancelled`: so, because somebody said so."""
    message: str = ""
    """Who cancelled it and when, where somebody did."""
    rows_total: int
    """Rows of the input."""
    rows_done: int
    """Rows committed, quarantined ones included."""
    rows_quarantined: int
    """Rows refused so far."""
    rows_truncated: int = 0
    """Rows so far whose text was cut."""
    rows_not_finite: int = 0
    """Rows for which the model returned NaN or infinity, quarantined or not."""
    partitions: int
    """Partitions of the input."""
    partitions_done: int
    """Partitions committed."""
    checkpoint: str
    """Checkpoint reference of the recipe."""
    snapshot: str
    """Snapshot digest it is locked on."""
    output: str
    """URL of the output."""
    created: str
    """ISO 8601, UTC."""
    driver: str
    """host:pid of the last driver."""
    heartbeat_age: float | None
    """Seconds since the last driver wrote its heartbeat, by this machine's clock."""
    progress: Progress | None
    """The last progress written."""
    members: tuple[MemberStatus, ...] = ()
    """The drivers that run it together, where several do or did."""
