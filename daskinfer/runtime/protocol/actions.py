"""What the state machine asks for: one frozen value for each thing that the driver is to do."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.errors import DaskinferError
from daskinfer.graphs.build import StageTask
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.poison import PoisonRecord


@dataclass(frozen=True, slots=True)
class LoadShard:
    """Load a stage's shard on a worker."""

    stage: int
    worker: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class GrantTag:
    """Let a worker that acknowledged its shard run the stage's tasks."""

    stage: int
    worker: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """Give a worker nothing new of a stage, let it finish what it has in work, then free its shard."""

    worker: str
    stage: int | None
    """None for everything that the job has there."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Take a worker off the cluster, so that its tasks go elsewhere, and have its nanny start another."""

    worker: str


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
class SpeculativeAttempt:
    """Start a microbatch a second time, on other workers than the one that is slow."""

    partition: int
    number: int
    attempt: int
    slow: str
    """Address of that worker."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Abandon:
    """Let go of an attempt that came in second and is stuck, so that no other worker takes it up."""

    task: StageTask


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
class Withdraw:
    """Take a microbatch back from the cluster."""

    partition: int
    number: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Inspect:
    """Find out which rows a microbatch has."""

    partition: int
    number: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a microbatch without some of its rows through all stages, and hold its result."""

    partition: int
    number: int
    without: tuple[int, ...]
    """Positions in the partition."""
    attempt: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class RecordPoison:
    """Write down the poisonous rows of a microbatch."""

    poison_record: PoisonRecord


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
class ClaimBlocks:
    """Find out what the others have committed, and claim a block where one is wanted."""

    is_wanted: bool
    idle: float = 0.0
    """Seconds for which there was nothing to start."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Write down what became of a request in the control log."""

    number: int
    detail: str


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


@dataclass(frozen=True, slots=True)
class StatusLine:
    """Something for whoever watches, again and again, and for no record."""

    detail: str


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal the output: all partitions are committed."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End the job with this error."""

    error: DaskinferError


Action = (
    LoadShard
    | GrantTag
    | ReleaseShard
    | Restart
    | Prepare
    | Submit
    | SpeculativeAttempt
    | Abandon
    | Commit
    | Release
    | Withdraw
    | Inspect
    | Probe
    | RecordPoison
    | LookAtAlias
    | OpenGeneration
    | Adopt
    | Switch
    | Compare
    | Judge
    | Retire
    | ClaimBlocks
    | Answer
    | IncidentRecord
    | Recovered
    | StatusLine
    | Seal
    | Fail
)


def describe(error: BaseException) -> str:
    """Return an error in one line, for a note.

    Examples
    --------
    >>> describe(ValueError("no such row"))
    'ValueError: no such row'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
