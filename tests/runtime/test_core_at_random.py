"""The driver's logic under any order of events and faults."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.errors import (
    CorruptActivation,
)
from daskinfer.runtime.protocol.actions import Action, Commit, Fail, LoadShard, Prepare, Seal, Submit
from daskinfer.runtime.protocol.events import (
    Committed,
    MicrobatchDone,
    Prepared,
    ShardLoaded,
    Stranded,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.spec.plan import WorkerShape
from tests.support.factories import acknowledge, make_machine, make_record, make_worker


def make_committed(partition: int) -> Committed:
    return Committed(make_record(partition, workers=()))


@dataclass
class _World:
    """A make-believe cluster that does what the core asks, in random order and with faults."""

    random: random.Random
    sizes: list[int]
    window: int
    todo: list[object] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)
    born: int = 0
    flying: set[tuple[int, int]] = field(default_factory=set)
    commits: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    through: set[tuple[int, int]] = field(default_factory=set)
    prepared: set[int] = field(default_factory=set)
    sealed: bool = False

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case LoadShard(stage, worker):
                    self.todo.append(acknowledge(stage, worker))
                case Prepare(partition, _):
                    self.todo.append(Prepared(partition, self.sizes[partition]))
                    if partition in self.prepared:
                        self.todo.append(Stranded(partition, (), committing=False))
                    self.prepared.add(partition)
                case Submit(partition, numbers, _):
                    for number in numbers:
                        self.flying.add((partition, number))
                        self.todo.append(MicrobatchDone(partition, number))
                    assert len(self.flying) <= self.window + self.lost
                case Commit(partition, _):
                    assert all(partition != flying for flying, _ in self.flying)
                    assert make_committed(partition) not in self.todo
                    self.todo.append(make_committed(partition))
                case Seal():
                    self.sealed = True
                case Fail(error):
                    raise error

    def join(self) -> WorkerShape:
        self.born += 1
        name = f"w{self.born}"
        self.workers.add(name)
        return make_worker(name)

    def next_event(self) -> object:
        if self.flying and self.random.random() < 0.05:
            return TaskFailed("prepare", self.random.choice(sorted(self.flying))[0], 0, OSError("lost"))
        event = self.todo.pop(self.random.randrange(len(self.todo)))
        if isinstance(event, Prepared | Stranded) and self.commits[event.partition]:
            return Tick()
        if isinstance(event, Stranded):
            return self.strand(event.partition)
        if isinstance(event, MicrobatchDone):
            if self.random.random() < 0.05:
                return TaskFailed("microbatch", event.partition, event.number, CorruptActivation("injected"))
            self.flying.discard((event.partition, event.number))
            self.through.add((event.partition, event.number))
        elif isinstance(event, Committed):
            partition = event.record.partition
            if self.sizes[partition] and self.random.random() < 0.1:
                error = CorruptActivation("injected")
                lost = self.random.sample(range(self.sizes[partition]), self.random.randint(1, self.sizes[partition]))
                self.lost += len(lost)
                self.through.difference_update((partition, number) for number in lost)
                return TaskFailed("commit", partition, 0, error, lost=tuple((number, error) for number in lost))
            self.commits[partition] += 1
        return event

    def strand(self, partition: int) -> object:
        """Let microbatches that are not through never end, and some results be lost; the commit waits for them then."""
        flying, through = (
            sorted(number for place, number in places if place == partition) for places in (self.flying, self.through)
        )
        lost = self.random.sample(through, self.random.randint(0, len(through)))
        self.lost += len(lost)
        self.through.difference_update((partition, number) for number in lost)
        is_commit = make_committed(partition) in self.todo
        gone = [make_committed(partition), *(MicrobatchDone(partition, number) for number in flying)]
        self.todo = [event for event in self.todo if event not in gone]
        if not lost and not flying and not is_commit:
            return Tick()
        return Stranded(partition, (*flying, *lost), committing=is_commit)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_any_order_of_events_and_faults_commits_every_partition_once(seed: int, sizes: list[int], window: int) -> None:
    world = _World(random.Random(seed), sizes, window)
    core = make_machine(
        len(sizes), replicas=(2, 1), window=window, limits=Limits(rejects=0, attempts=99, losses=10**6, patience=10**6)
    )
    world.obey(core.start([world.join() for _ in range(3)]))
    for _ in range(5000):
        if world.sealed:
            break
        if world.random.random() < 0.03:
            victim = world.random.choice(sorted(world.workers))
            world.workers.remove(victim)
            world.todo = [
                event for event in world.todo if not (isinstance(event, ShardLoaded) and event.ack.worker == victim)
            ]
            world.obey(core.handle(WorkerLost(victim), 0))
            world.obey(core.handle(WorkerJoined(world.join()), 0))
        else:
            world.obey(core.handle(world.next_event(), 0))  # type: ignore[arg-type]
    assert world.sealed
    assert world.commits == Counter(dict.fromkeys(range(len(sizes)), 1))
