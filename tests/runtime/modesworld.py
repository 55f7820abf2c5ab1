"""A make-believe cluster and storage around the driver's real logic, for what may happen while a job follows an alias.

Storage has what the real one has: an alias that moves, commits created exclusively by scope and partition, and a log of
generations with one writer for each slot. Drivers die and are followed by others; what they had asked for goes on, and
may commit at any later moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from daskinfer.errors import CorruptBlob, DaskinferError, StorageError
from daskinfer.runtime.protocol.actions import (
    Adopt,
    Commit,
    Fail,
    LoadShard,
    LookAtAlias,
    OpenGeneration,
    Prepare,
    Retire,
    Seal,
    Switch,
)
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    Committed,
    Event,
    GenerationOpened,
    ShardAck,
    ShardFailed,
    ShardLoaded,
    Switched,
    Tick,
)
from daskinfer.runtime.protocol.keys import AliasHead
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import Generations, SnapshotPin, Step, as_ranges, fold
from daskinfer.spec.recipe.schema import Consistency
from tests.support.chooser import Chooser
from tests.support.factories import SOURCE, make_machine
from tests.support.simulatedcluster import SimulatedCluster
from tests.support.simulatedtasks import Pass

PARTITIONS = 6


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Started:
    """An attempt at a partition."""

    pin: SnapshotPin
    computed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CommitTask:
    """A commit under way."""

    pin: SnapshotPin
    partition: int


class Life(SimulatedCluster):
    """One driver, with its workers and its tasks.

    Parameters
    ----------
    world
        What outlives it.
    machine
        Its decisions.
    pin
        What it begins on.
    """

    def __init__(self, world: ModesWorld, machine: StateMachine, pin: SnapshotPin) -> None:
        super().__init__(machine, world.chooser, world.sizes)
        self.world = world
        self.epoch = world.epoch
        self.pins = {pin.generation: pin}
        self.attempts: dict[tuple[int, int], Started] = {}
        self._performers |= {
            LookAtAlias: self.look_at_alias,
            OpenGeneration: self.open_generation,
            Adopt: lambda action: self.log("adopt", action.generation),
            Switch: self.switch,
            Retire: self.retire,
        }

    def tell(self, event: Event) -> None:
        self.now = self.world.now
        super().tell(event)

    def happen(self, thing: Any) -> None:
        if isinstance(thing, CommitTask):
            pin, number = thing.pin, thing.partition
            started = self.attempts.pop((pin.generation, number))
            thing = Committed(self.world.store_commit(self.epoch, pin, number, started), pin.generation)
        super().happen(thing)

    def compute(self, each: Pass) -> None:
        generation, partition, number = each.key
        pin = self.pins[generation]
        if self.world.bug == "mixed-microbatches":  # a worker that looks the name up by itself
            pin = SnapshotPin(snapshot=self.world.alias[-1][1])
        self.attempts[generation, partition].computed[number] = pin.snapshot
        super().compute(each)

    def load(self, action: LoadShard) -> None:
        stage, worker, generation = action.stage, action.worker, action.generation
        if generation in self.world.damaged:
            self.todo.append(ShardFailed(stage, worker, CorruptBlob("a shard is damaged"), generation))
            return
        ack = ShardAck(stage, worker, self.pins[generation].snapshot, SOURCE, 1, 0.1, "cpu", generation)
        self.todo.append(ShardLoaded(ack))

    def prepare(self, action: Prepare) -> None:
        pin, damaged = self.pins[action.generation], self.world.damaged
        why = f"a partition starts on generation {pin.generation}, which was never loaded"
        self.world.forbid(pin.generation in damaged, why)
        self.world.check_start(pin)
        self.attempts[action.generation, action.partition] = Started(pin)
        super().prepare(action)

    def commit(self, action: Commit) -> None:
        self.todo.append(CommitTask(self.pins[action.generation], action.partition))

    def look_at_alias(self, action: LookAtAlias) -> None:
        seen = AliasHead(self.world.alias[-1][1], len(self.world.alias) - 1)
        if self.chooser.happens(100):
            self.todo.append(AliasUnseen(StorageError("503")))
            return
        self.world.seen = seen.snapshot
        self.todo.append(AliasSeen(seen))

    def open_generation(self, action: OpenGeneration) -> None:
        pin = action.pin
        self.log("prepare", pin.generation, pin=pin)
        self.pins[pin.generation] = pin
        rules = self.world.rules
        if rules.mode != "bounded" and not rules.converge and self.chooser.happens(200):
            self.world.damaged.add(pin.generation)
        self.todo.append(GenerationOpened(pin))

    def switch(self, action: Switch) -> None:
        self.log("switch", action.pin.generation, owned=as_ranges(action.partitions))
        self.todo.append(Switched(action.pin, action.partitions, rejects=0))

    def retire(self, action: Retire) -> None:
        if action.given_up:
            self.log("drop", action.generation)
        self.world.forbid(
            any(place[0] == action.generation for place in self.attempts),
            f"generation {action.generation} was let go of while it was in use",
        )

    def seal(self, action: Seal) -> None:
        super().seal(action)
        self.world.seal()

    def fail(self, action: Fail) -> None:
        self.world.error = action.error

    def log(self, op: Any, generation: int, **fields: Any) -> None:
        """Append to the log of generations."""
        self.world.steps.append(Step(op=op, generation=generation, epoch=self.epoch, **fields))


class ModesWorld:
    """Everything that outlives a driver, and the driver of the moment.

    Parameters
    ----------
    rules
        The recipe's consistency.
    chooser
        What happens when.
    bug
        A mistake to make: `resolve-on-resume`, `last-writer-wins`, `no-staleness-check`, `no-fence`,
        `mixed-microbatches`.
    """

    def __init__(self, rules: Consistency, chooser: Chooser, bug: str = "") -> None:
        self.rules = rules
        self.chooser = chooser
        self.sizes = [(1,) * chooser.below(3) for _ in range(PARTITIONS)]
        self.bug = bug
        self.now = 0.0
        self.alias = [(0.0, "s0")]
        self.steps: list[Step] = []
        self.commits: dict[tuple[int, int], CommitRecord] = {}
        self.order: list[tuple[int, int]] = []
        self.zombies: list[tuple[int, SnapshotPin, int, Started]] = []
        self.manifest: dict[int, CommitRecord] | None = None
        self.epoch = 0
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
        self.alias.append((self.now, self.chooser.pick(names)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.life is not None:
            self.life.tell(Tick())

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
        self.life = Life(self, core, current)
        self.life.begin(1)

    def kill_driver(self) -> None:
        """Kill the driver; the tasks that it has submitted go on without it."""
        if self.life is not None:
            self.zombies += [
                (self.life.epoch, started.pin, place[1], started) for place, started in self.life.attempts.items()
            ]
            self.life = None

    def lose_worker(self) -> None:
        """Kill the one worker, and start another."""
        if (life := self.life) is not None:
            life.lose_worker(life.workers[-1])
            if self.life is not None:
                life.join()

    def step(self) -> None:
        """Let one of the things happen that are under way."""
        if self.life is not None and self.life.todo:
            self.life.step()

    def wake_zombie(self) -> None:
        """Let a task of a dead driver commit what it computed."""
        if self.zombies:
            epoch, pin, number, started = self.zombies.pop(self.chooser.below(len(self.zombies)))
            self.store_commit(epoch, pin, number, started)

    def finish(self) -> None:
        """Leave everything in peace until the job ends."""
        self.chooser.calm()
        for _ in range(3_000):
            if self.manifest is not None or self.error is not None:
                return
            if self.life is None:
                self.start_driver()
            self.step()
            self.pass_time(0.5)
        self.forbid(True, "the job does not end")

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

    def store_commit(self, epoch: int, pin: SnapshotPin, number: int, started: Started) -> CommitRecord:
        self.forbid(
            len(set(started.computed.values()) | {pin.snapshot}) > 1,
            f"I0: partition {number} mixes {set(started.computed.values())}",
        )
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
            if there is not None:
                is_sealed = self.manifest is not None and self.manifest.get(number) == there
                self.forbid(is_sealed and there != record, f"I6: partition {number} changed after the seal")
                is_other = there.snapshot != record.snapshot
                self.forbid(is_other, f"I4: the commit of partition {number} changed from {there.snapshot}")
            self.commits[place] = record
            self.order.append(place)
        return self.commits[place]

    def seal(self) -> None:
        """Seal the output, as the driver's last action."""
        assert self.life is not None
        if self.rules.follows:
            self.steps.append(Step(op="seal", epoch=self.life.epoch))
        counted = self.counted()
        self.forbid(
            sorted(counted) != list(range(PARTITIONS)), f"I4: partitions {sorted(counted)} of {PARTITIONS} are sealed"
        )
        self.manifest = counted
        self.life = None

    # Invariants

    def forbid(self, is_broken: bool, message: str) -> None:
        """Make sure of an invariant."""
        if is_broken:
            self.violated = True  # nothing that follows proves anything
            raise Violation(message)

    def check_start(self, pin: SnapshotPin) -> None:
        """I2: a partition starts on what the alias pointed to at most `max_lag` moves before, as of `refresh` ago."""
        if self.rules.lag is None:
            return
        known = [number for number, (at, _) in enumerate(self.alias) if at <= self.now - self.rules.refresh]
        head = known[-1] if known else 0
        latest = max(number for number, (_, snapshot) in enumerate(self.alias) if snapshot == pin.snapshot)
        self.forbid(
            head - latest > self.rules.lag,
            f"I2: a partition started {head - latest} moves behind; {self.rules.lag} are allowed",
        )

    def check_seal(self) -> None:
        """I1, I3, I5: what the mode promises of the whole output."""
        assert self.manifest is not None
        snapshots = {record.snapshot for record in self.manifest.values()}
        self.forbid(
            not self.rules.follows and snapshots != {self.alias[0][1]},
            f"I1: a strong job locked {self.alias[0][1]} and is on {snapshots}",
        )
        self.forbid(
            self.rules.converge and snapshots != {self.seen},
            f"I3: the alias was last seen on {self.seen}, the output is on {snapshots}",
        )
        if self.rules.upgrade:
            for number, record in self.manifest.items():
                if record.generation != self.generations.owner(number):
                    raise Violation(f"I5: partition {number} is of generation {record.generation}, not its owner's")
