"""What the state machine is told: one frozen value for each thing that happened."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.errors import DaskinferError
from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.keys import AliasHead, Link, Step
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.plan import WorkerShape


@dataclass(frozen=True, slots=True)
class ShardAck:
    """A worker's word that it holds a stage's shard, verified, of exactly this snapshot."""

    stage: int
    worker: str
    snapshot: str
    source: str
    """Digest of the daskinfer code that the worker runs."""
    read_bytes: int
    seconds: float
    device: str
    """What the worker computes with."""
    generation: int = 0
    """Number of the snapshot among the job's."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker connected to the scheduler."""

    worker: WorkerShape


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died, was closed or cannot be reached."""

    worker: str
    silent: float | None = None
    """Seconds since it was last heard of, where that is known."""
    tasks: tuple[StageTask, ...] = ()
    """The job's microbatches that were assigned to it; any of them may have been running."""


@dataclass(frozen=True, slots=True)
class WorkerFrozen:
    """A worker is connected, and has not been heard of for longer than the recipe allows; told again as time goes by."""

    worker: str
    silent: float
    """Seconds since it was last heard of."""


@dataclass(frozen=True, slots=True)
class WorkerPaused:
    """A worker's memory is so full that Dask gives it no new tasks."""

    worker: str
    used: int
    """Bytes that its process holds."""
    limit: int
    """Its memory limit in bytes."""


@dataclass(frozen=True, slots=True)
class WorkerResumed:
    """A paused worker takes tasks again."""

    worker: str


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """A worker uses more than a share of its memory limit, or is paused because of that; told once a second."""

    worker: str
    used: int
    """Bytes that its process holds."""
    limit: int
    """Its memory limit in bytes."""
    paused: bool
    """Whether Dask gives it no new tasks."""


@dataclass(frozen=True, slots=True)
class NetworkCut:
    """Workers that need what others hold cannot reach them; all of these are connected to the scheduler."""

    links: tuple[Link, ...]
    seconds: float
    """Since one of them began to wait."""


@dataclass(frozen=True, slots=True)
class LinkRestored:
    """A link that was cut is there again."""

    link: Link
    """As it was told when it was cut."""


@dataclass(frozen=True, slots=True)
class Running:
    """What the workers are running."""

    tasks: tuple[StageTask, ...]


@dataclass(frozen=True, slots=True)
class ShardLoaded:
    """A load task finished."""

    ack: ShardAck


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """A load task raised."""

    stage: int
    worker: str
    error: BaseException
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ShardReleased:
    """A worker has finished what it had in work, and its shard is freed."""

    worker: str
    stage: int | None
    """None where it was everything that the job had there."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A partition was read and tokenised; it has this many microbatches."""

    partition: int
    microbatches: int
    generation: int = 0
    nbytes: int = 0
    """Of all of them, as the first stage gets them."""


@dataclass(frozen=True, slots=True)
class MicrobatchDone:
    """The last stage finished a microbatch."""

    partition: int
    number: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """A partition's commit record exists; it may be another attempt's."""

    record: CommitRecord
    generation: int = 0
    """Of the attempt that found or made it."""


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task raised on a worker."""

    step: Step
    partition: int
    number: int
    """Microbatch; 0 for the other steps."""
    error: BaseException
    generation: int = 0
    lost: tuple[tuple[int, BaseException], ...] = ()
    """Of a commit: microbatches whose results went with their worker and could not be computed again, and why."""


@dataclass(frozen=True, slots=True)
class Stranded:
    """A partition is prepared again, and what is made from the rows that were lost never ends, or is lost with them."""

    partition: int
    microbatches: tuple[int, ...]
    committing: bool
    """Whether the task that commits is one of them."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Inspected:
    """A microbatch under suspicion has these rows."""

    partition: int
    number: int
    rows: tuple[int, ...]
    """Positions in the partition, in the microbatch's order."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """A probe went through the last stage."""

    partition: int
    number: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe raised."""

    partition: int
    number: int
    error: BaseException
    generation: int = 0


@dataclass(frozen=True, slots=True)
class PoisonRecorded:
    """The poisonous rows of a microbatch are written down."""

    poison_record: PoisonRecord
    """As it is stored: another driver's where that came first."""


@dataclass(frozen=True, slots=True)
class AliasSeen:
    """The alias was looked at."""

    head: AliasHead


@dataclass(frozen=True, slots=True)
class AliasUnseen:
    """The alias could not be read."""

    error: DaskinferError


@dataclass(frozen=True, slots=True)
class GenerationOpened:
    """A snapshot is locked, fits the plan, and is written down as one of the job's."""

    pin: SnapshotPin


@dataclass(frozen=True, slots=True)
class GenerationRefused:
    """A snapshot cannot be one of the job's."""

    pin: SnapshotPin
    error: DaskinferError


@dataclass(frozen=True, slots=True)
class Switched:
    """A generation has taken over partitions, for good."""

    pin: SnapshotPin
    partitions: tuple[int, ...]
    rejects: int
    """Rows that are quarantined in what counts now."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A partition's results on two snapshots were compared."""

    part: PartComparison
    partition: int


@dataclass(frozen=True, slots=True)
class Judged:
    """All pairs were compared, and the gate has spoken, for good."""

    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class BlocksClaimed:
    """Event: the answer to `ClaimBlocks`."""

    partitions: tuple[int, ...] = ()
    """Claimed just now, in the order in which to start them; those that are committed are left out."""
    committed: tuple[CommitRecord, ...] = ()
    """Found in storage; some of them may be known by now."""
    trouble: str = ""
    """Why storage could not be asked; it will be, again."""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody wants the run to stop."""

    number: int
    """Of the request in the control log."""
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Somebody wants a worker to be let go, and nothing to be lost by it."""

    number: int
    worker: str
    by: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


Event = (
    WorkerJoined
    | WorkerLost
    | WorkerFrozen
    | WorkerPaused
    | WorkerResumed
    | MemoryPressure
    | NetworkCut
    | LinkRestored
    | Running
    | ShardLoaded
    | ShardFailed
    | ShardReleased
    | Prepared
    | MicrobatchDone
    | Committed
    | TaskFailed
    | Stranded
    | Inspected
    | ProbeDone
    | ProbeFailed
    | PoisonRecorded
    | AliasSeen
    | AliasUnseen
    | GenerationOpened
    | GenerationRefused
    | Switched
    | Compared
    | Judged
    | BlocksClaimed
    | CancelAsked
    | DrainAsked
    | Tick
)
