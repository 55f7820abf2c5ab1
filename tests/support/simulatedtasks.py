"""What is under way in a simulated cluster, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daskinfer.runtime.protocol.events import Committed, Event, Inspected, Prepared, ShardLoaded, ShardReleased
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.spec.rows import Fault

MicrobatchKey = tuple[int, int, int]
"""Generation, partition, microbatch."""


@dataclass(frozen=True)
class Pass:
    """A microbatch on its way through the stages."""

    key: MicrobatchKey
    attempt: int
    rows: tuple[int, ...]
    is_probe: bool = False


@dataclass(frozen=True)
class RowsLost:
    """The rows of a partition that was prepared again: whatever waited for the old ones never ends."""

    place: PartitionKey


class Told:
    """An event, as one line of the story that a failing example tells; no dataclass, for Hypothesis spreads those out."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __repr__(self) -> str:
        match self._event:
            case ShardLoaded(ack):
                return f"ShardLoaded(stage={ack.stage}, worker={ack.worker})"
            case Committed(record):
                return f"Committed(partition={record.partition})"
        return repr(self._event)


@dataclass(frozen=True)
class Troubles:
    """What is wrong with a cluster and its rows."""

    faults: Mapping[str, int] = field(default_factory=dict)
    """How often in a thousand turns: `death` of a worker that is replaced, or `leave`; `kill`, a death that its microbatches
    may have caused; `strand`, `failure` of whatever would have ended, `prepare-failure`, `pressure`, `drain`, `join`, `tick`."""
    poison: Mapping[tuple[int, int, int], Fault] = field(default_factory=dict)
    """(partition, microbatch, row) -> what it does to whatever computes it."""
    mercy: int = 0
    """Kills that are still to come; none of a row that is all alone."""
    pace: tuple[float, ...] = (0.0,)
    """Seconds from one event to the next, one of these."""
    nbytes: int = 0
    """At most so large is a partition when it is prepared."""


def worker_of(thing: object) -> str | None:
    """Return the worker that something under way ends with."""
    match thing:
        case ShardLoaded(ack):
            return ack.worker
        case ShardReleased(worker):
            return worker
    return None


def place_of(thing: object) -> PartitionKey | None:
    """Return the generation and partition that something under way is of."""
    match thing:
        case Pass((generation, partition, _)):
            return generation, partition
        case RowsLost(place):
            return place
        case Prepared(partition, _, generation) | Inspected(partition, _, _, generation):
            return generation, partition
    return None
