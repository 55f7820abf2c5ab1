"""A make-believe cluster and storage around the driver's real logic, for what may happen while a job follows an alias.

Storage has what the real one has: an alias that moves, commits created exclusively by scope and partition, and a log of
generations with one writer for each slot. Drivers die and are followed by others; what they had asked for goes on, and
may commit at any later moment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from daskinfer.errors import CorruptBlob, DaskinferError, StorageError
from daskinfer.runtime.protocol.actions import (
    Action,
    Adopt,
    Commit,
    Fail,
    LoadShard,
    LookAtAlias,
    OpenGeneration,
    Prepare,
    Retire,
    Seal,
    Submit,
    Switch,
)
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    Committed,
    Event,
    GenerationOpened,
    MicrobatchDone,
    Prepared,
    ShardAck,
    ShardFailed,
    ShardLoaded,
    Switched,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.protocol.keys import AliasHead
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import Generations, SnapshotPin, Step, as_ranges, fold
from daskinfer.spec.plan import WorkerShape
from daskinfer.spec.recipe.schema import Consistency
from tests.support.factories import SOURCE, make_machine

PARTITIONS = 6


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Started:
    """An attempt at a partition."""

    pin: SnapshotPin
    at: float
    computed: dict[int, str] = field(default_factory=dict)


@dataclass
class Life:
    """One driver."""

    epoch: int
    core: StateMachine
    pins: dict[int, SnapshotPin]
    todo: list[Event | tuple[str, SnapshotPin, int]] = field(default_factory=list)
    attempts: dict[tuple[int, int], Started] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)


class ModesWorld:
    """Everything that outlives a driver, and the driver of the moment.

    Parameters
    ----------
    rules
        The recipe's consistency.
    seed
        Decides what happens when.
    bug
        A mistake to make: `resolve-on-resume`, `last-writer-wins`, `no-staleness-check`, `no-fence`,
        `mixed-microbatches`.
    """

    def __init__(self, rules: Consistency, seed: int, bug: str = "") -> None:
        self.rules = rules
        self.random = random.Random(seed)
        self.bug = bug
        self.now = 0.0
        self.alias = [(0.0, "s0")]
        self.steps: list[Step] = []
        self.commits: dict[tuple[int, int], CommitRecord] = {}
        self.order: list[tuple[int, int]] = []
        self.zombies: list[tuple[int, SnapshotPin, int, Started]] = []
        self.manifest: dict[int, CommitRecord] | None = None
        self.born = self.epoch = 0
        self.error: DaskinferError | None = None
        self.life: Life | None = None
        self.seen = "s0"
        self.violated = False
        self.damaged: set[int] = set()

    # What people do

    def move_alias(self) -> None:
        """Publish another version, or go back to an earlier one."""
        names = [f"s{len(self.alias)}", *(snapshot for _, snapshot in self.alias)]
        self.now += 0.01
        self.alias.append((self.now, self.random.choice(names)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._tell(Tick())

    # Drivers

    def start_driver(self) -> None:
        """Begin or resume, as a session does; a driver that still runs is left to itself."""
        self.kill_driver()
        self.epoch += 1
        generations = self.generations
        current = generations.current
        if self.bug == "resolve-on-resume" and not self.rules.follows:
            current = SnapshotPin(snapshot=self.alias[-1][1], sequence=len(self.alias) - 1)
        for pin in generations.pins:
            if pin.generation > current.generation and pin.generation not in generations.dropped:
                self.steps.append(Step(op="drop", generation=pin.generation, epoch=self.epoch))
        pinning = AliasTracker(current, self.rules, len(generations.pins))
        if self.bug == "no-staleness-check":
            pinning.may_start = lambda now: True  # type: ignore[method-assign]
        committed = {number: record.snapshot for number, record in self.counted().items()}
        core = make_machine(
            PARTITIONS,
            committed,
            replicas=(1,),
            limits=Limits(rejects=0, losses=10**6, patience=10**9),
            rules=self.rules,
            tracker=pinning,
            epoch=self.epoch,
        )
        self.life = Life(self.epoch, core, {current.generation: current})
        self._obey(core.start([self._hire()]))

    def kill_driver(self) -> None:
        """Kill the driver; the tasks that it has submitted go on without it."""
        if self.life is not None:
            self.zombies += [
                (self.life.epoch, started.pin, place[1], started) for place, started in self.life.attempts.items()
            ]
            self.life = None

    def lose_worker(self) -> None:
        """Kill the one worker, and start another."""
        life = self.life
        if life is None:
            return
        victim = life.workers.pop()
        life.todo = [each for each in life.todo if not (isinstance(each, ShardLoaded) and each.ack.worker == victim)]
        self._tell(WorkerLost(victim))
        if self.life is not None:
            self._tell(WorkerJoined(self._hire()))

    def step(self) -> None:
        """Let one of the things happen that are under way."""
        if self.life is None or not self.life.todo:
            return
        todo = self.life.todo
        event = todo.pop(self.random.randrange(len(todo)))
        if isinstance(event, tuple):
            what, pin, number = event
            assert what == "commit"
            started = self.life.attempts.pop((pin.generation, number))
            self._tell(Committed(self._commit(self.life.epoch, pin, number, started), pin.generation))
            return
        if isinstance(event, MicrobatchDone):
            pin = self.life.pins[event.generation]
            if self.bug == "mixed-microbatches":  # a worker that looks the name up by itself
                pin = SnapshotPin(snapshot=self.alias[-1][1])
            self.life.attempts[event.generation, event.partition].computed[event.number] = pin.snapshot
        self._tell(event)

    def wake_zombie(self) -> None:
        """Let a task of a dead driver commit what it computed."""
        if self.zombies:
            epoch, pin, number, started = self.zombies.pop(self.random.randrange(len(self.zombies)))
            self._commit(epoch, pin, number, started)

    def finish(self) -> None:
        """Leave everything in peace until the job ends."""
        for _ in range(3_000):
            if self.manifest is not None or self.error is not None:
                return
            if self.life is None:
                self.start_driver()
            self.step()
            self.pass_time(0.5)
        raise self._violation("the job does not end")

    # Storage

    @property
    def generations(self) -> Generations:
        return fold(SnapshotPin(snapshot=self.alias[0][1], sequence=0), self.steps)

    def counted(self) -> dict[int, CommitRecord]:
        """Return the commits that count."""
        generations = self.generations
        if self.bug == "no-fence":
            return {partition: record for (_, partition), record in self.commits.items()}
        return {
            partition: record
            for (scope, partition), record in self.commits.items()
            if generations.owner(partition) == scope
        }

    def _commit(self, epoch: int, pin: SnapshotPin, number: int, started: Started) -> CommitRecord:
        if len(set(started.computed.values()) | {pin.snapshot}) > 1:
            raise self._violation(f"I0: partition {number} mixes {set(started.computed.values())}")
        record = CommitRecord(
            job="job",
            snapshot=pin.snapshot,
            generation=pin.generation,
            partition=number,
            epoch=epoch,
            rows_in=1,
            rows_out=1,
            rows_quarantined=0,
            tokens=1,
            padded_tokens=1,
            microbatches=(),
            digest=f"{pin.snapshot}/{number}",
            path="",
            trail=(),
        )
        place = (0 if self.bug == "no-fence" else pin.scope, number)
        there = self.commits.get(place)
        if there is None or self.bug in ("last-writer-wins", "no-fence"):
            if self.manifest is not None and self.manifest.get(number) == there and there != record and there:
                raise self._violation(f"I6: partition {number} changed after the seal")
            if there is not None and there.snapshot != record.snapshot:
                raise self._violation(f"I4: the commit of partition {number} changed from {there.snapshot}")
            self.commits[place] = record
            self.order.append(place)
        return self.commits[place]

    # Between the driver and the world

    def _hire(self) -> WorkerShape:
        assert self.life is not None
        self.born += 1
        name = f"w{self.born}"
        self.life.workers.add(name)
        return WorkerShape(address=name, threads=1, memory=0, resources={"GPU": 1})

    def _tell(self, event: Event) -> None:
        if self.life is not None:
            self._obey(self.life.core.handle(event, self.now))

    def _obey(self, actions: list[Action]) -> None:
        life = self.life
        assert life is not None
        for action in actions:
            match action:
                case LoadShard(stage, worker, generation):
                    ack = ShardAck(stage, worker, life.pins[generation].snapshot, SOURCE, 1, 0.1, "cpu", generation)
                    is_damaged = generation in self.damaged
                    error = CorruptBlob("a shard is damaged")
                    life.todo.append(ShardFailed(stage, worker, error, generation) if is_damaged else ShardLoaded(ack))
                case Prepare(partition, _, generation):
                    pin = life.pins[generation]
                    if generation in self.damaged:
                        raise self._violation(f"a partition starts on generation {generation}, which was never loaded")
                    self._check_start(pin)
                    life.attempts[generation, partition] = Started(pin, self.now)
                    life.todo.append(Prepared(partition, self.random.randint(0, 2), generation))
                case Submit(partition, numbers, _, generation):
                    life.todo += [MicrobatchDone(partition, number, generation) for number in numbers]
                case Commit(partition, _, generation):
                    life.todo.append(("commit", life.pins[generation], partition))
                case LookAtAlias():
                    seen = AliasHead(self.alias[-1][1], len(self.alias) - 1)
                    unseen = self.random.random() < 0.1
                    self.seen = self.seen if unseen else seen.snapshot
                    life.todo.append(AliasUnseen(StorageError("503")) if unseen else AliasSeen(seen))
                case OpenGeneration(pin):
                    self.steps.append(Step(op="prepare", generation=pin.generation, pin=pin, epoch=life.epoch))
                    life.pins[pin.generation] = pin
                    if self.rules.mode != "bounded" and not self.rules.converge and self.random.random() < 0.2:
                        self.damaged.add(pin.generation)
                    life.todo.append(GenerationOpened(pin))
                case Adopt(generation):
                    self.steps.append(Step(op="adopt", generation=generation, epoch=life.epoch))
                case Switch(pin, partitions):
                    step = Step(op="switch", generation=pin.generation, owned=as_ranges(partitions), epoch=life.epoch)
                    self.steps.append(step)
                    life.todo.append(Switched(pin, partitions, rejects=0))
                case Retire(generation, given_up):
                    if given_up:
                        self.steps.append(Step(op="drop", generation=generation, epoch=life.epoch))
                    if any(place[0] == generation for place in life.attempts):
                        raise self._violation(f"generation {generation} was let go of while it was in use")
                case Seal():
                    self._seal()
                case Fail(error):
                    self.error = error

    def _seal(self) -> None:
        assert self.life is not None
        if self.rules.follows:
            self.steps.append(Step(op="seal", epoch=self.life.epoch))
        counted = self.counted()
        if sorted(counted) != list(range(PARTITIONS)):
            raise self._violation(f"I4: partitions {sorted(counted)} of {PARTITIONS} are sealed")
        self.manifest = counted
        self.life = None

    # Invariants

    def _violation(self, message: str) -> Violation:
        self.violated = True  # nothing that follows proves anything
        return Violation(message)

    def _check_start(self, pin: SnapshotPin) -> None:
        """I2: a partition starts on what the alias pointed to at most `max_lag` moves before, as of `refresh` ago."""
        if self.rules.lag is None:
            return
        known = [number for number, (at, _) in enumerate(self.alias) if at <= self.now - self.rules.refresh]
        head = known[-1] if known else 0
        latest = max(number for number, (_, snapshot) in enumerate(self.alias) if snapshot == pin.snapshot)
        if head - latest > self.rules.lag:
            raise self._violation(f"I2: a partition started {head - latest} moves behind; {self.rules.lag} are allowed")

    def check_seal(self) -> None:
        """I1, I3, I5: what the mode promises of the whole output."""
        assert self.manifest is not None
        snapshots = {record.snapshot for record in self.manifest.values()}
        if not self.rules.follows and snapshots != {self.alias[0][1]}:
            raise self._violation(f"I1: a strong job locked {self.alias[0][1]} and is on {snapshots}")
        if self.rules.converge and snapshots != {self.seen}:
            raise self._violation(f"I3: the alias was last seen on {self.seen}, the output is on {snapshots}")
        if self.rules.upgrade:
            for number, record in self.manifest.items():
                if record.generation != self.generations.owner(number):
                    raise self._violation(
                        f"I5: partition {number} is of generation {record.generation}, not its owner's"
                    )
