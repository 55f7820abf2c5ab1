"""From one snapshot to the next: the part of the driver's logic that loads, switches and lets go of generations.

A candidate is locked and loaded beside the current generation, on every post, before anything starts on it. Where the
recipe asks for a *switch*, what is open is committed first; then one record in storage gives the new generation all
partitions that are left, so that a commit of a driver that slept through it counts for nothing.
"""

from __future__ import annotations

from daskinfer.errors import DaskinferError
from daskinfer.ids import shorten
from daskinfer.runtime.protocol.actions import (
    Action,
    Adopt,
    Fail,
    IncidentRecord,
    Judge,
    LoadShard,
    LookAtAlias,
    OpenGeneration,
    Retire,
    Seal,
    Switch,
    describe,
)
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    Compared,
    GenerationOpened,
    GenerationRefused,
    Judged,
    Switched,
)
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.runtime.state_machine.rules import EarlierWork
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.recipe.schema import Consistency


class SnapshotRollout:
    """Which generations are in use, and what comes next.

    Parameters
    ----------
    tracker
        What partitions start on.
    rules
        The recipe's consistency.
    workers, work
        The driver's workers and partitions.
    earlier
        What earlier runs have committed, and how many partitions there are.
    trial
        The candidate that is compared, if any.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> rules, earlier = make_rules(), EarlierWork(partitions=3, committed={})
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> workers, work = WorkerAssignment(rules.requirements), PartitionTracker(4, iter([]), left=3)
    >>> rollout = SnapshotRollout(tracker, rules.consistency, workers, work, earlier, trial=None)
    >>> rollout.is_over, list(rollout.pins)
    (False, [0])
    """

    def __init__(
        self,
        tracker: AliasTracker,
        rules: Consistency,
        workers: WorkerAssignment,
        work: PartitionTracker,
        earlier: EarlierWork,
        trial: CanaryTrial | None,
    ) -> None:
        self._tracker = tracker
        self._rules = rules
        self._workers = workers
        self._work = work
        self._partitions = earlier.partitions
        self._trial = trial
        self.pins = {pin.generation: pin for pin in [tracker.current, *([trial.pin] if trial else [])]}
        # A canary needs to know what is left for the current snapshot when it is refused.
        self._done = set(earlier.committed) if trial and trial.decides else set()
        # Only an output that is to converge needs to know which partition is on which snapshot.
        self._snapshots = earlier.committed if rules.converge else {}
        self._takes_over: tuple[int, ...] | None = None
        self._given_up: set[int] = set()
        self._switching = False
        self._closing_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to do at all."""
        return not self._work.left and not self._rules.converge and self._trial is None

    def is_candidate(self, generation: int) -> bool:
        """Whether a generation is on its way in."""
        candidate = self._tracker.candidate
        return candidate is not None and candidate.generation == generation

    def is_on_trial(self, generation: int) -> bool:
        """Whether what is computed on a generation is only compared."""
        return self._trial is not None and generation == self._trial.pin.generation and not self._trial.verdict

    def note_committed(self, generation: int, record: CommitRecord) -> list[Action]:
        """Take in which snapshot a partition is on."""
        if self._rules.converge:
            self._snapshots[record.partition] = record.snapshot
        if self._trial is None or self._trial.verdict is not None:
            return []
        if self._trial.decides and not self.is_on_trial(generation):
            self._done.add(record.partition)
        return self._trial.note(generation, record)

    def on_compared(self, event: Compared, now: float) -> list[Action]:
        """Take in that a pair was compared."""
        assert self._trial is not None
        self._trial.compared(event.partition)
        return []

    def on_judged(self, event: Judged, now: float) -> list[Action]:
        """Go on as the gate says: on the candidate, or on the current snapshot."""
        trial = self._trial
        assert trial is not None
        trial.decide(event.passed)
        note = IncidentRecord("canary" if trial.decides else "shadow", event.detail)
        if not trial.decides:
            return [note]
        if not event.passed:
            self._work.waiting.refill(number for number in range(self._partitions) if number not in self._done)
            return [note]
        self._work.waiting.refill(number for number in range(self._partitions) if not trial.is_done(number))
        self._tracker.choose(trial.pin)
        return [note, *self._advance()]

    def on_alias(self, event: AliasSeen, now: float) -> list[Action]:
        """Take in where the alias points."""
        head = event.head
        is_new = self._tracker.see(head)
        moved = IncidentRecord(
            "alias-moved", f"the alias points to {shorten(head.snapshot)} since its move {head.sequence}"
        )
        return [*([moved] if is_new else []), *([] if self._is_finished() else self._follow())]

    def on_alias_unseen(self, event: AliasUnseen, now: float) -> list[Action]:
        """Take in that the alias could not be read."""
        if not self._tracker.miss():
            return []
        return [IncidentRecord("alias-unseen", f"the alias could not be read: {describe(event.error)}")]

    def on_opened(self, event: GenerationOpened, now: float) -> list[Action]:
        """Load a candidate that is locked and fits, on every post."""
        pin = event.pin
        self.pins[pin.generation] = pin
        self._workers.add_generation(pin.generation)
        return [LoadShard(stage, worker, pin.generation) for stage, worker in self._workers.posts]

    def on_refused(self, event: GenerationRefused, now: float) -> list[Action]:
        """Let a candidate go that does not fit."""
        return self.give_up(event.error)

    def give_up(self, error: DaskinferError) -> list[Action]:
        """Let a candidate go that cannot be used."""
        if self._tracker.candidate is not None:
            self._given_up.add(self._tracker.candidate.generation)
        self._tracker.refuse()
        if self._takes_over is not None or self._tracker.must_follow:
            return [Fail(error)]
        return [IncidentRecord("snapshot-refused", f"the job stays where it is: {describe(error)}")]

    def on_switched(self, event: Switched, now: float) -> list[Action]:
        """Start on the generation that has taken over these partitions."""
        self._switching, self._takes_over, self._closing_since = False, None, None
        self._work.waiting.refill(event.partitions)
        return self._advance()

    def go_on(self, now: float) -> list[Action]:
        """Do what is due whatever happened: start partitions, change the snapshot, look at the alias, end."""
        candidate = self._tracker.candidate
        is_loaded = candidate is not None and self._workers.is_loaded(candidate.generation)
        is_switch = candidate is not None and candidate.scope == candidate.generation
        actions: list[Action] = []
        if is_loaded and not is_switch:
            actions += self._advance()
        may_start = not self._switching and not (is_loaded and is_switch) and self._tracker.may_start(now)
        actions += self._work.pump(self._tracker.current.generation, may_start)
        if candidate is not None and is_loaded and is_switch and not self._switching and not self._work.open:
            actions += self._switch(candidate)
        if self._is_finished():
            actions += self._close(now)
        elif self._tracker.wants_look(now):
            self._tracker.ask(now)
            actions.append(LookAtAlias())
        return [*actions, *self._retire()]

    def _follow(self) -> list[Action]:
        pin = self._tracker.propose()
        return [] if pin is None else [OpenGeneration(pin)]

    def _advance(self) -> list[Action]:
        self._tracker.advance()
        pin = self._tracker.current
        note = IncidentRecord(
            "snapshot-moved", f"partitions start on {shorten(pin.snapshot)}, generation {pin.generation}, now"
        )
        # A switch, and the verdict on a canary, are records by themselves.
        adopt = [] if pin.scope == pin.generation else [Adopt(pin.generation)]
        return [note, *adopt, *self._follow()]

    def _switch(self, candidate: SnapshotPin) -> list[Action]:
        partitions = self._work.waiting.take_all() if self._takes_over is None else self._takes_over
        if not partitions:
            return []
        self._switching = True
        return [Switch(candidate, partitions)]

    def _is_finished(self) -> bool:
        return not self._work.left and not self._work.open and not self._switching

    def _close(self, now: float) -> list[Action]:
        """End, or find out first what the gate says, or whether the alias points elsewhere by now."""
        trial = self._trial
        if trial is not None and trial.verdict is None:
            return [Judge(trial.pin)] if trial.ask() else []
        if not self._rules.converge:
            return [Seal()]
        if self._takes_over is not None:
            return []  # what is to be computed again is being loaded
        if self._closing_since is None:
            self._closing_since = now
        if not self._tracker.knows_since(self._closing_since):
            if not self._tracker.is_asking:
                self._tracker.ask(now)
                return [LookAtAlias()]
            return []
        head = self._tracker.head
        assert head is not None
        stale = tuple(sorted(number for number, found in self._snapshots.items() if found != head.snapshot))
        if not stale:
            return [Seal()]
        if self._tracker.candidate is not None:
            return []  # it is on its way in
        self._takes_over = stale
        return [OpenGeneration(self._tracker.take_up(head, switches=True))]

    def _retire(self) -> list[Action]:
        """Let go of generations that nothing is, or will be, computed on."""
        wanted = {self._tracker.current.generation, *(generation for generation, _ in self._work.open)}
        if self._tracker.candidate is not None:
            wanted.add(self._tracker.candidate.generation)
        if self._trial is not None and self._trial.verdict is None:
            wanted.add(self._trial.pin.generation)
        gone = [generation for generation in self._workers.generations if generation not in wanted]
        for generation in gone:
            self._workers.retire(generation)
            self.pins.pop(generation, None)
        return [Retire(generation, generation in self._given_up) for generation in gone]
