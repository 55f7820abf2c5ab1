"""Rows that raise, hang or kill, in a job whose workers die by chance as well."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import (
    Action,
    Commit,
    Fail,
    Inspect,
    LoadShard,
    Prepare,
    Probe,
    RecordPoison,
    Seal,
    Submit,
    Withdraw,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    Convicted,
    Event,
    Inspected,
    MicrobatchDone,
    Prepared,
    ProbeDone,
    ProbeFailed,
    Running,
    Stranded,
    TaskFailed,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.state_machine.faults.poison_bisection import ALONE, FANOUT
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.rows import Fault
from tests.support.factories import acknowledge, make_machine, make_record, make_worker
from tests.support.strategies import KINDS


@dataclass
class _World:
    """A make-believe cluster on which some rows raise, hang or kill, and workers die by chance."""

    random: random.Random
    sizes: list[list[int]]
    """Partition -> rows of each of its microbatches."""
    poison: dict[tuple[int, int, int], Fault]
    """(partition, microbatch, row) -> what it does."""
    mercy: int
    """Deaths by chance that are still to come; never of a row that is all alone."""
    todo: list[Event] = field(default_factory=list)
    flying: dict[tuple[int, int], tuple[int, tuple[int, ...], bool]] = field(default_factory=dict)
    """(partition, microbatch) -> attempt, rows, whether it is a probe."""
    computed: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    committed: Counter[int] = field(default_factory=Counter)
    probes: int = 0
    born: int = 2
    sealed: bool = False

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case LoadShard(stage, worker):
                    self.todo.append(acknowledge(stage, worker))
                case Prepare(partition, _):
                    self.todo.append(Prepared(partition, len(self.sizes[partition])))
                case Submit(partition, numbers, attempt):
                    for number in numbers:
                        self.flying[partition, number] = (attempt, self.rows(partition, number), False)
                case Withdraw(partition, number):
                    self.flying.pop((partition, number), None)
                case Inspect(partition, number):
                    self.todo.append(Inspected(partition, number, self.rows(partition, number)))
                case Probe(partition, number, without, attempt):
                    self.probes += 1
                    rows = tuple(row for row in self.rows(partition, number) if row not in without)
                    self.flying[partition, number] = (attempt, rows, True)
                case RecordPoison(conviction):
                    place = (conviction.partition, conviction.microbatch)
                    assert set(conviction.positions) == self.bad(*place)
                    self.todo.append(Convicted(conviction))
                case Commit(partition, _):
                    for number in range(len(self.sizes[partition])):
                        left = tuple(set(self.rows(partition, number)) - self.bad(partition, number))
                        assert self.computed.get((partition, number), ()) == left
                    self.todo.append(Committed(make_record(partition, workers=())))
                case Seal():
                    self.sealed = True
                case Fail(error):
                    raise error

    def rows(self, partition: int, number: int) -> tuple[int, ...]:
        return tuple(range(self.sizes[partition][number]))

    def bad(self, partition: int, number: int) -> set[int]:
        return {row for *place, row in self.poison if place == [partition, number]}

    def fault(self, place: tuple[int, int]) -> Fault | None:
        found = [self.poison.get((*place, row)) for row in self.flying[place][1]]
        return next(filter(None, found), None)

    def step(self, core: StateMachine) -> None:
        """Let something happen: an answer, the end of a microbatch, or a death."""
        if self.todo and (not self.flying or self.random.random() < 0.5):
            event = self.todo.pop(self.random.randrange(len(self.todo)))
            if isinstance(event, Committed):
                self.committed[event.record.partition] += 1
            self.obey(core.handle(event, 0))
            return
        if self.random.random() < 0.03:
            self.strand(core, self.random.randrange(len(self.sizes)))
            return
        place = self.random.choice(sorted(self.flying))
        attempt, rows, is_probe = self.flying[place]
        fault = self.fault(place)
        if self.mercy and fault is None and not (len(rows) == 1 and is_probe) and self.random.random() < 0.2:
            self.mercy -= 1
            fault = "killed"
        match fault:
            case "killed":
                self.kill(core, place)
            case "hung":
                task = StageTask(0, *place, attempt, 0, f"w{self.born}", 10.0)
                self.obey(core.handle(Running((task,)), 0))
                self.replace(core, WorkerLost(f"w{self.born}"))
            case "raised":
                error = ValueError("boom")
                if is_probe:
                    self.obey(core.handle(ProbeFailed(*place, error), 0))
                else:
                    self.obey(core.handle(TaskFailed("microbatch", *place, error), 0))
            case None:
                self.computed[place] = rows
                del self.flying[place]
                self.obey(core.handle(ProbeDone(*place) if is_probe else MicrobatchDone(*place), 0))

    def strand(self, core: StateMachine, partition: int) -> None:
        """Let everything that is under way with a partition never end, because its rows were lost."""
        looks = [event for event in self.todo if isinstance(event, Inspected) and event.partition == partition]
        self.todo = [event for event in self.todo if event not in looks]
        places = [place for place in self.flying if place[0] == partition]
        for place in places:
            self.probes -= self.flying.pop(place)[2]
        numbers = {number for _, number in places} | {look.number for look in looks}
        if numbers:
            self.obey(core.handle(Stranded(partition, tuple(sorted(numbers)), committing=False), 0))

    def kill(self, core: StateMachine, place: tuple[int, int]) -> None:
        """Let a worker die, with the microbatch and others that were assigned to it."""
        assigned = {place, *self.random.sample(sorted(self.flying), self.random.randint(0, len(self.flying)))}
        worker = f"w{self.born}"
        tasks = tuple(StageTask(0, *other, self.flying[other][0], 0, worker) for other in sorted(assigned))
        self.replace(core, WorkerLost(worker, tasks=tasks))

    def replace(self, core: StateMachine, lost: WorkerLost) -> None:
        self.obey(core.handle(lost, 0))
        self.born += 1
        self.obey(core.handle(WorkerJoined(make_worker(f"w{self.born}")), 0))
        while loaded := [event for event in self.todo if type(event).__name__ == "ShardLoaded"]:
            self.todo.remove(loaded[0])
            self.obey(core.handle(loaded[0], 0))


@st.composite
def worlds(draw: st.DrawFn) -> _World:
    sizes = draw(st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=4), min_size=1, max_size=4))
    rows = [
        (partition, number, row)
        for partition, microbatches in enumerate(sizes)
        for number, size in enumerate(microbatches)
        for row in range(size)
    ]
    poison = draw(st.dictionaries(st.sampled_from(rows), KINDS, max_size=5))
    return _World(random.Random(draw(st.integers(0, 10**6))), sizes, poison, draw(st.integers(0, 4)))


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(1, 6))
def test_any_poison_and_any_deaths_leave_every_other_row_computed(world: _World, window: int) -> None:
    limits = Limits(rejects=5, losses=0, seconds=5.0)
    core = make_machine(len(world.sizes), window=window, limits=limits)
    deaths = world.mercy
    world.obey(core.start([make_worker("w1"), make_worker("w2")]))
    for _ in range(5000):
        if world.sealed:
            break
        world.step(core)
    assert world.sealed
    assert world.committed == Counter(range(len(world.sizes)))
    # Whatever was in flight when a worker died may be probed, and is acquitted at once.
    suspects = len(world.poison) + deaths * window
    assert world.probes <= 2 * suspects + (len(world.poison) + deaths) * (3 * FANOUT["killed"] + ALONE)
