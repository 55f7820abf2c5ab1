"""What the driver core is told about microbatches that fail, take long or never end (events), and what it asks for (actions)."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.graphs.build import StageTask
from daskinfer.spec.job.poison import PoisonRecord


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
class Convicted:
    """The poisonous rows of a microbatch are written down."""

    conviction: PoisonRecord
    """As it is stored: another driver's where that came first."""


@dataclass(frozen=True, slots=True)
class Stranded:
    """A partition is prepared again, and what is made from the rows that were lost never ends, or is lost with them."""

    partition: int
    microbatches: tuple[int, ...]
    committing: bool
    """Whether its commit is among it."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """What the workers are at."""

    tasks: tuple[StageTask, ...]


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

    conviction: PoisonRecord


@dataclass(frozen=True, slots=True)
class Abandon:
    """Let go of an attempt that came in second and is stuck, so that no other worker takes it up."""

    task: StageTask


@dataclass(frozen=True, slots=True)
class SpeculativeAttempt:
    """Start a microbatch a second time, on other workers than the one that is slow."""

    partition: int
    number: int
    attempt: int
    slow: str
    """Address of that worker."""
    generation: int = 0


SuspectEvent = Inspected | ProbeDone | ProbeFailed | Convicted
SuspectAction = Withdraw | Inspect | Probe | RecordPoison | Abandon | SpeculativeAttempt
