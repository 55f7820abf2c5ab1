"""A simulated cluster: workers and tasks that do what a state machine asks, in any order, and break.

Hypothesis draws every choice. What tests tell apart is data: which rows break a model, how often what breaks. Worlds with
storage of their own, several drivers or an alias that moves replace the methods that perform an action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypothesis import note

from daskinfer.errors import CorruptActivation
from daskinfer.graphs.build import StageTask
from daskinfer.runtime.protocol.actions import (
    Action,
    Commit,
    Fail,
    GrantTag,
    Inspect,
    LoadShard,
    Prepare,
    Probe,
    RecordPoison,
    Release,
    ReleaseShard,
    Seal,
    Submit,
    Withdraw,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    DrainAsked,
    Event,
    Inspected,
    MemoryPressure,
    MicrobatchDone,
    PoisonRecorded,
    Prepared,
    ProbeDone,
    ProbeFailed,
    Running,
    ShardLoaded,
    ShardReleased,
    Stranded,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.chooser import Chooser
from tests.support.factories import acknowledge, make_record
from tests.support.simulatedtasks import MicrobatchKey, Pass, RowsLost, Told, Troubles, place_of, worker_of

MOST_STEPS = 5000
MOST_IDLE = 10


class SimulatedCluster:
    """Workers, shards, tasks and losses around a state machine.

    Parameters
    ----------
    machine
        What decides.
    chooser
        What happens when.
    sizes
        Partition -> rows of each of its microbatches.
    troubles
        What breaks.
    """

    def __init__(
        self,
        machine: StateMachine,
        chooser: Chooser,
        sizes: Sequence[Sequence[int]],
        troubles: Troubles | None = None,
    ) -> None:
        self.machine = machine
        self.chooser = chooser
        self.sizes = sizes
        self.troubles = troubles or Troubles()
        self.mercy = self.troubles.mercy
        self.now = 0.0
        self.todo: list[object] = []
        """What is under way: events that will come, and microbatches that are computed."""
        self.workers: list[str] = []
        self.loaded: set[tuple[int, int, str]] = set()
        self.tags: set[tuple[int, int, str]] = set()
        """(generation, stage, worker) of what was loaded, and of what is granted."""
        self.computed: dict[MicrobatchKey, tuple[int, ...]] = {}
        """Microbatches that wait for the commit of their partition, with the rows that were computed."""
        self.identified: dict[MicrobatchKey, set[int]] = {}
        self.committed: Counter[int] = Counter()
        self.recomputed = 0
        """Results that were lost: as many microbatches may be in flight beyond the window."""
        self.largest_window = 0
        self.probes = 0
        self.is_sealed = False
        self._prepared: set[PartitionKey] = set()
        self._born = 0
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            LoadShard: self.load,
            GrantTag: self.grant,
            ReleaseShard: self.release_shard,
            Prepare: self.prepare,
            Submit: self.submit,
            Withdraw: lambda action: self.withdraw((action.generation, action.partition, action.number)),
            Inspect: self.inspect,
            Probe: self.probe,
            RecordPoison: self.record_poison,
            Commit: self.commit,
            Release: self.release,
            Seal: self.seal,
            Fail: self.fail,
        }

    # What a test does

    def begin(self, workers: int) -> None:
        """Start with so many workers."""
        self.obey(self.machine.start([make_worker(self.hire()) for _ in range(workers)]))

    def run(self, steps: int = MOST_STEPS) -> None:
        """Let things happen until the output is sealed."""
        idle = 0
        for _ in range(steps):
            self.step()
            if self.is_sealed:
                return
            idle = 0 if self.todo else idle + 1
            assert idle < MOST_IDLE, "the job does not end: nothing is under way"
        raise AssertionError("the job does not end")

    def step(self) -> None:
        """Let one thing happen, or break."""
        fault = self.chooser.turn(self.troubles.faults)
        match fault:
            case "death" if self.workers:
                self.lose_worker(self.chooser.pick(self.workers))
                self.join()
            case "leave" if self.workers:
                self.lose_worker(self.chooser.pick(self.workers))
            case "join":
                self.join()
            case "strand":
                self.strand((0, self.chooser.below(len(self.sizes))), lose_results=False)
            case "prepare-failure" if self.flying():
                generation, partition, _ = self.chooser.pick(self.flying()).key
                self.tell(TaskFailed("prepare", partition, 0, OSError("lost"), generation))
            case "drain" if self.workers:
                self.tell(DrainAsked(len(self.tags), self.chooser.pick(self.workers), "somebody"))
            case "tick":
                self.tell(Tick())
            case "pressure" if self.workers:
                self.tell(MemoryPressure(self.workers[0], 9, 10, False))
            case _ if self.todo:
                thing = self.todo.pop(self.chooser.below(len(self.todo)))
                if fault == "failure":
                    self.break_task(thing)
                elif fault == "kill" and isinstance(thing, Pass):
                    self.kill(thing)
                else:
                    self.happen(thing)
            case _:
                self.tell(Tick())

    def flying(self, place: PartitionKey | None = None) -> list[Pass]:
        """Return the microbatches that are under way, of one partition or of all."""
        passes = [thing for thing in self.todo if isinstance(thing, Pass)]
        return [each for each in passes if place is None or each.key[:2] == place]

    def join(self) -> None:
        """Let another worker come."""
        self.tell(WorkerJoined(make_worker(self.hire())))

    def lose_worker(self, victim: str, tasks: tuple[StageTask, ...] = ()) -> None:
        """Let a worker die; Dask computes again what it held."""
        self.workers.remove(victim)
        self.todo = [thing for thing in self.todo if worker_of(thing) != victim]
        self.loaded = {place for place in self.loaded if place[2] != victim}
        self.tags = {place for place in self.tags if place[2] != victim}
        self.tell(WorkerLost(victim, tasks=tasks))

    # What happens

    def tell(self, event: Event) -> None:
        """Tell the state machine, and do what it asks."""
        note(Told(event))
        self.now += self.chooser.pick(self.troubles.pace)
        self.obey(self.machine.handle(event, self.now))

    def obey(self, actions: Iterable[Action]) -> None:
        """Do what is asked, or begin to."""
        for action in actions:
            if perform := self._performers.get(type(action)):
                perform(action)

    def happen(self, thing: Any) -> None:
        """Let something end that was under way."""
        match thing:
            case Pass():
                self.compute(thing)
                return
            case RowsLost(place):
                self.strand(place, lose_results=True)
                return
            case ShardLoaded(ack):
                self.loaded.add((ack.generation, ack.stage, ack.worker))
            case Committed(record, generation):
                self.committed[record.partition] += 1
                self.computed = {
                    key: rows for key, rows in self.computed.items() if key[:2] != (generation, record.partition)
                }
        self.tell(thing)

    def break_task(self, thing: Any) -> None:
        """Let something fail that was under way, if it can."""
        match thing:
            case Pass((generation, partition, number)) if not thing.is_probe:
                self.tell(TaskFailed("microbatch", partition, number, CorruptActivation("injected"), generation))
            case Committed(record, generation) if self.sizes[record.partition]:
                error, numbers = CorruptActivation("injected"), range(len(self.sizes[record.partition]))
                lost = self.chooser.pick_some(numbers) or [numbers[0]]
                self.recomputed += len(lost)
                for number in lost:
                    del self.computed[generation, record.partition, number]
                losses = tuple((number, error) for number in lost)
                self.tell(TaskFailed("commit", record.partition, 0, error, generation, lost=losses))
            case _:
                self.happen(thing)

    def compute(self, each: Pass) -> None:
        """Let a microbatch go through all stages, as far as its rows let it."""
        generation, partition, number = each.key
        poison = self.troubles.poison
        match next(filter(None, (poison.get((partition, number, row)) for row in each.rows)), None):
            case "killed":
                self.die_of(each)
            case "hung":
                self.todo.append(each)
                worker = self._pick_computing()
                task = StageTask(*each.key, each.attempt, 0, worker, 10.0)
                self.tell(Running((task,)))
                self.lose_worker(worker)
                self.join()
            case "raised" if each.is_probe:
                self.tell(ProbeFailed(partition, number, ValueError("boom"), generation))
            case "raised":
                self.tell(TaskFailed("microbatch", partition, number, ValueError("boom"), generation))
            case _:
                self.computed[each.key] = each.rows
                done = ProbeDone if each.is_probe else MicrobatchDone
                self.tell(done(partition, number, generation))

    def kill(self, each: Pass) -> None:
        """Let a worker die by chance while it computes this, as long as that is allowed."""
        if self.mercy and not (len(each.rows) == 1 and each.is_probe):
            self.mercy -= 1
            self.die_of(each)
        else:
            self.compute(each)

    def die_of(self, each: Pass) -> None:
        """Let a worker die, with this microbatch and others that were assigned to it."""
        others = self.chooser.pick_some(self.flying())
        self.todo.append(each)
        worker = self._pick_computing()
        assigned = sorted([each, *others], key=lambda other: other.key)
        self.lose_worker(worker, tuple(StageTask(*other.key, other.attempt, 0, worker) for other in assigned))
        self.join()

    def strand(self, place: PartitionKey, lose_results: bool) -> None:
        """Let everything that is under way with a partition never end; some results, and the commit, may be lost."""
        generation, partition = place
        flying = self.flying(place)
        looks = [thing for thing in self.todo if isinstance(thing, Inspected) and thing.partition == partition]
        commits = self._commits_of(place) if lose_results else []
        lost = self.chooser.pick_some(sorted(key for key in self.computed if key[:2] == place)) if lose_results else []
        self.recomputed += len(lost)
        for key in lost:
            del self.computed[key]
        self.probes -= sum(each.is_probe for each in flying)
        self.todo = [thing for thing in self.todo if thing not in (*flying, *looks, *commits)]
        numbers = {each.key[2] for each in flying} | {look.number for look in looks} | {key[2] for key in lost}
        if numbers or commits:
            self.tell(Stranded(partition, tuple(sorted(numbers)), bool(commits), generation))
        else:
            self.tell(Tick())

    # What the state machine asks for

    def load(self, action: LoadShard) -> None:
        self.todo.append(acknowledge(action.stage, action.worker))

    def grant(self, action: GrantTag) -> None:
        place = (action.generation, action.stage, action.worker)
        assert place in self.loaded, "a tag is granted for a shard that is not there"
        self.tags.add(place)

    def release_shard(self, action: ReleaseShard) -> None:
        """Take tags back; some other worker computes each of the stages."""
        given_back = {place for place in self.tags if place[2] == action.worker and action.stage in (None, place[1])}
        self.tags -= given_back
        for generation, stage, _ in given_back:
            assert any(place[:2] == (generation, stage) for place in self.tags), "a stage loses its last worker"
        self.todo.append(ShardReleased(action.worker, action.stage))

    def prepare(self, action: Prepare) -> None:
        place = (action.generation, action.partition)
        microbatches = len(self.sizes[action.partition])
        self.todo.append(
            Prepared(action.partition, microbatches, action.generation, self.chooser.below(self.troubles.nbytes))
        )
        if place in self._prepared:
            self.todo.append(RowsLost(place))
        self._prepared.add(place)

    def submit(self, action: Submit) -> None:
        for number in action.numbers:
            self._fly((action.generation, action.partition, number), action.attempt, ())
        # A window that has just shrunk still holds what was let in before.
        self.largest_window = max(self.largest_window, self.machine._parts.partitions.window)
        flying = sum(not each.is_probe for each in self.flying())
        assert flying <= self.largest_window + self.recomputed, "more is in flight than the window allows"

    def withdraw(self, key: MicrobatchKey) -> None:
        self.todo = [thing for thing in self.todo if not (isinstance(thing, Pass) and thing.key == key)]

    def inspect(self, action: Inspect) -> None:
        rows = tuple(range(self.sizes[action.partition][action.number]))
        self.todo.append(Inspected(action.partition, action.number, rows, action.generation))

    def probe(self, action: Probe) -> None:
        self.probes += 1
        self._fly((action.generation, action.partition, action.number), action.attempt, action.without, is_probe=True)

    def record_poison(self, action: RecordPoison) -> None:
        record = action.poison_record
        assert set(record.positions) == self.bad_rows(record.partition, record.microbatch)
        self.identified[record.generation, record.partition, record.microbatch] = set(record.positions)
        self.todo.append(PoisonRecorded(record))

    def commit(self, action: Commit) -> None:
        place = (action.generation, action.partition)
        assert not self.flying(place), "a partition is committed while something of it is in flight"
        assert not self._commits_of(place), "a partition is committed twice at once"
        for number, size in enumerate(self.sizes[action.partition]):
            left = tuple(sorted(set(range(size)) - self.bad_rows(action.partition, number)))
            assert self.computed.get((*place, number), ()) == left, "a partition is committed without all of its rows"
        self.todo.append(Committed(make_record(action.partition, workers=()), action.generation))

    def release(self, action: Release) -> None:
        """Let nothing more be heard of a partition."""
        place = (action.generation, action.partition)
        self.todo = [thing for thing in self.todo if place_of(thing) != place]

    def seal(self, action: Seal) -> None:
        self.is_sealed = True

    def fail(self, action: Fail) -> None:
        raise action.error

    # Within

    def bad_rows(self, partition: int, number: int) -> set[int]:
        """Return the rows of a microbatch that break whatever computes them."""
        return {row for *place, row in self.troubles.poison if place == [partition, number]}

    def _fly(self, key: MicrobatchKey, attempt: int, without: tuple[int, ...], is_probe: bool = False) -> None:
        left_out = self.identified.get(key, set()).union(without)
        rows = tuple(row for row in range(self.sizes[key[1]][key[2]]) if row not in left_out)
        self.withdraw(key)
        self.todo.append(Pass(key, attempt, rows, is_probe))

    def _commits_of(self, place: PartitionKey) -> list[Committed]:
        return [
            thing
            for thing in self.todo
            if isinstance(thing, Committed) and (thing.generation, thing.record.partition) == place
        ]

    def _pick_computing(self) -> str:
        return self.chooser.pick(sorted({worker for _, _, worker in self.tags}) or self.workers)

    def hire(self) -> str:
        """Return the address of another worker."""
        self._born += 1
        self.workers.append(f"w{self._born}")
        return self.workers[-1]
