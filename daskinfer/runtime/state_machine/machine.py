"""The driver's logic: events in, actions out. No I/O, no cluster, no clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daskinfer.errors import Cancelled
from daskinfer.runtime.protocol.actions import Action, Answer, Fail, Probe, Seal, SpeculativeAttempt
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    BlocksClaimed,
    CancelAsked,
    Committed,
    Compared,
    DrainAsked,
    Event,
    GenerationOpened,
    GenerationRefused,
    Inspected,
    Judged,
    LinkRestored,
    MemoryPressure,
    MicrobatchDone,
    NetworkCut,
    PoisonRecorded,
    Prepared,
    ProbeDone,
    ProbeFailed,
    Running,
    ShardFailed,
    ShardLoaded,
    ShardReleased,
    Stranded,
    Switched,
    TaskFailed,
    Tick,
    WorkerFrozen,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.state_machine.partition_events import PartitionEvents
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.parts import Parts, make_parts
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.runtime.state_machine.rules import EarlierWork, RunRules
from daskinfer.runtime.state_machine.shard_events import ShardEvents
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.plan import WorkerShape

Handler = Callable[[Any, float], list[Action]]
"""Takes an event and the time, and returns what to do about it."""

_COUNTED = {Probe: "probes", SpeculativeAttempt: "second_starts"}


class StateMachine:
    """Decides what runs where and when; the driver carries it out.

    Parameters
    ----------
    rules
        What the run goes by.
    earlier
        What earlier runs have left.
    tracker
        What partitions start on; every worker must acknowledge its digest before the first one does.
    trial
        The candidate that is compared, if any.
    claims
        Where it is one of several that run the job: what it claims.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules, make_worker
    >>> rules = make_rules(replicas=(1, 1))
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> machine = StateMachine(rules, EarlierWork(partitions=3, committed={}), tracker)
    >>> machine.start([make_worker("a"), make_worker("b")])
    [LoadShard(stage=0, worker='a', generation=0), LoadShard(stage=1, worker='b', generation=0)]
    >>> machine.handle(CancelAsked(number=0, by="ada@host", at="noon"), now=1.0)[0]
    Answer(number=0, detail='the run stops')
    """

    def __init__(
        self,
        rules: RunRules,
        earlier: EarlierWork,
        tracker: AliasTracker,
        trial: CanaryTrial | None = None,
        claims: ClaimPolicy | None = None,
    ) -> None:
        self._parts = make_parts(rules, earlier, tracker, trial, claims)
        self._partition_events = PartitionEvents(self._parts, rules)
        worker_events = ShardEvents(self._parts, rules)
        self._handlers = make_handlers(self._parts, self._partition_events, worker_events)
        self._ended = False
        self._actions: Counter[str] = Counter()

    @property
    def running(self) -> bool:
        """Whether all stages have acknowledged the snapshot, so that partitions may start."""
        return self._parts.workers.complete

    @property
    def pins(self) -> list[SnapshotPin]:
        """What there is to be loaded at the start."""
        return list(self._parts.rollout.pins.values())

    @property
    def workers(self) -> WorkerAssignment:
        """The workers and what they do."""
        return self._parts.workers

    @property
    def claims(self) -> ClaimPolicy | None:
        """What it claims, where it is one of several that run the job."""
        return self._parts.claims

    @property
    def counters(self) -> Counter[str]:
        """What was lost, failed and computed again, for the report."""
        lost = Counter({"workers_lost": self._parts.failures.workers_lost})
        return Counter({**lost, **self._partition_events.counters, **self._actions})

    def is_on_trial(self, generation: int) -> bool:
        """Whether what is computed on a generation is only compared."""
        return self._parts.rollout.is_on_trial(generation)

    def is_ours(self, record: CommitRecord) -> bool:
        """Whether this driver asked for a commit."""
        return self._partition_events.is_ours(record)

    def start(self, workers: Sequence[WorkerShape]) -> list[Action]:
        """Begin with these workers."""
        parts = self._parts
        if parts.rollout.is_over:
            self._ended = True
            return [Seal()]
        return [*parts.workers.enlist(workers), *(parts.trial.begin() if parts.trial else [])]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at a time `now` (seconds, any monotonic clock) and return what to do about it."""
        if self._ended:
            return []
        parts = self._parts
        actions = [action for handler in self._handlers[type(event)] for action in handler(event, now)]
        if self._partition_events.poisonous:
            actions += self._partition_events.check_budget()
        if self.running and not any(isinstance(action, Fail) for action in actions):
            actions += [*parts.poison.go_on(), *parts.rollout.go_on(now)]
        if parts.claims is not None:
            actions += parts.claims.go_on(now, self.running, bool(parts.partitions.open))
        self._actions.update(_COUNTED[type(action)] for action in actions if type(action) in _COUNTED)
        actions += parts.retries.close(actions, now)
        self._ended = any(isinstance(action, Fail | Seal) for action in actions)
        return actions


def make_handlers(
    parts: Parts, partitions: PartitionEvents, workers: ShardEvents
) -> Mapping[type[Any], tuple[Handler, ...]]:
    """Return who hears of each event, in this order: the one place that says so.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> rules = make_rules()
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> parts = make_parts(rules, EarlierWork(partitions=3, committed={}), tracker)
    >>> handlers = make_handlers(parts, PartitionEvents(parts, rules), ShardEvents(parts, rules))
    >>> [handler.__qualname__ for handler in handlers[WorkerLost]]
    ['WorkerFailureHandler.lost']
    """
    window, retries, rollout, poison, failures = (
        parts.window, parts.retries, parts.rollout, parts.poison, parts.failures,
    )  # fmt: skip
    return {
        WorkerJoined: (failures.join,),
        WorkerLost: (failures.lost,),
        WorkerFrozen: (failures.freeze,),
        WorkerPaused: (retries.on_paused,),
        WorkerResumed: (retries.on_resumed,),
        MemoryPressure: (window.on_pressure,),
        NetworkCut: (failures.cut,),
        LinkRestored: (failures.correct,),
        Running: (workers.on_running,),
        ShardLoaded: (retries.on_loaded, workers.on_loaded),
        ShardFailed: (workers.on_load_failed,),
        ShardReleased: (workers.on_released,),
        Prepared: (window.on_prepared, retries.on_prepared, parts.partitions.on_prepared),
        MicrobatchDone: (window.on_computed, retries.on_computed, partitions.on_computed),
        Committed: (window.on_committed, retries.on_committed, partitions.on_committed),
        TaskFailed: (partitions.on_failed,),
        Stranded: (partitions.on_stranded,),
        Inspected: (poison.on_inspected,),
        ProbeDone: (retries.on_probed, poison.on_probe_done),
        ProbeFailed: (retries.on_probed, partitions.on_probe_failed),
        PoisonRecorded: (poison.on_recorded,),
        AliasSeen: (rollout.on_alias,),
        AliasUnseen: (rollout.on_alias_unseen,),
        GenerationOpened: (rollout.on_opened,),
        GenerationRefused: (rollout.on_refused,),
        Switched: (partitions.on_switched, rollout.on_switched),
        Compared: (rollout.on_compared,),
        Judged: (rollout.on_judged,),
        BlocksClaimed: (partitions.on_claimed,),
        CancelAsked: (_cancel,),
        DrainAsked: (workers.on_drain_asked,),
        Tick: (workers.on_tick,),
    }


def _cancel(event: CancelAsked, now: float) -> list[Action]:
    return [Answer(event.number, "the run stops"), Fail(Cancelled(f"cancelled by {event.by} at {event.at}"))]
