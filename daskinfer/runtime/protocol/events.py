"""What the driver core is told (events) and what it asks for (actions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daskinfer.errors import DaskinferError
from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.health import LinkMended, NetworkCut, Restart, WorkerFrozen, WorkerPaused, WorkerResumed
from daskinfer.runtime.protocol.orders import Answer, CancelAsked, DrainAsked, ReleaseShard, ShardReleased, StatusLine
from daskinfer.runtime.protocol.probes import Running, Stranded, SuspectAction, SuspectEvent
from daskinfer.runtime.state_machine.partitions.claim_policy import BlocksClaimed, ClaimBlocks
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasHead
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.plan import WorkerShape

Step = Literal["prepare", "microbatch", "commit"]


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
class MemoryPressure:
    """A worker uses more than a share of its memory limit, or is paused because of that; told once a second."""

    worker: str
    used: int
    """Bytes that its process holds."""
    limit: int
    """Bytes that it may."""
    paused: bool
    """Whether Dask gives it no new tasks."""


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
class Tick:
    """Time went by."""


Event = (
    WorkerJoined
    | WorkerLost
    | WorkerFrozen
    | WorkerPaused
    | WorkerResumed
    | NetworkCut
    | LinkMended
    | MemoryPressure
    | ShardLoaded
    | ShardFailed
    | Prepared
    | MicrobatchDone
    | Committed
    | TaskFailed
    | Stranded
    | AliasSeen
    | AliasUnseen
    | GenerationOpened
    | GenerationRefused
    | Switched
    | Compared
    | Judged
    | SuspectEvent
    | Running
    | BlocksClaimed
    | CancelAsked
    | DrainAsked
    | ShardReleased
    | Tick
)


@dataclass(frozen=True, slots=True)
class LoadShard:
    """Load a stage's shard on a worker."""

    stage: int
    worker: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class GrantToken:
    """Let a worker that acknowledged its shard run the stage's tasks."""

    stage: int
    worker: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Read and tokenise a partition."""

    partition: int
    attempt: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Submit:
    """Send microbatches of a partition through all stages."""

    partition: int
    numbers: tuple[int, ...]
    attempt: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """Put a partition's rows in order, write and commit them."""

    partition: int
    attempt: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Forget everything about a committed partition, so that nothing of it is ever computed again."""

    partition: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class LookAtAlias:
    """Find out where the alias points."""


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """Lock a snapshot, make sure that it fits, and write it down."""

    pin: SnapshotPin


@dataclass(frozen=True, slots=True)
class Adopt:
    """Partitions start on a generation from now on; whoever resumes the job goes on with it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Switch:
    """Let a generation take over partitions."""

    pin: SnapshotPin
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare a partition's results on two snapshots."""

    current: CommitRecord
    candidate: CommitRecord


@dataclass(frozen=True, slots=True)
class Judge:
    """Find out whether the candidate passes, and let it take over or be given up accordingly."""

    pin: SnapshotPin


@dataclass(frozen=True, slots=True)
class Retire:
    """Nothing is computed on a generation any more: free its shards, give its lock back."""

    generation: int
    given_up: bool = False
    """Whether nothing ever was: no later driver is to start on it."""


@dataclass(frozen=True, slots=True)
class Seal:
    """All partitions are committed."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The job cannot go on."""

    error: DaskinferError


@dataclass(frozen=True, slots=True)
class IncidentRecord:
    """Something for the journal and the report."""

    kind: str
    detail: str
    number: int | None = None
    """Of an incident that something recovers from: `Recovered` follows."""
    detect_seconds: float | None = None
    """From the last sign of health until now, where that can be told."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """An incident is over."""

    number: int
    seconds: float
    """Since it was noted."""


Action = (
    LoadShard
    | GrantToken
    | Prepare
    | Submit
    | Commit
    | Release
    | SuspectAction
    | LookAtAlias
    | OpenGeneration
    | Adopt
    | Switch
    | Compare
    | Judge
    | Retire
    | ClaimBlocks
    | Seal
    | Restart
    | Fail
    | IncidentRecord
    | ReleaseShard
    | Answer
    | StatusLine
    | Recovered
)


def describe(error: BaseException) -> str:
    """Return an error in one line, for a note."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
