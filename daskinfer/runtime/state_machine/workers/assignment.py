"""Which worker does what: the part of the driver's logic that deals with coming and going.

A worker computes one stage as its own; it *doubles* where another stage has no worker left; a *standby* keeps shards warm
and computes nothing until a stage loses its worker. The rules for that are in `placement_policy`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from daskinfer.planning.placement import declares
from daskinfer.runtime.protocol.actions import Action, Answer, GrantTag, IncidentRecord, LoadShard, ReleaseShard
from daskinfer.runtime.state_machine.workers.assignment_table import (
    AssignmentTable,
    Role,
    ShardAssignment,
    WorkerRequirements,
)
from daskinfer.runtime.state_machine.workers.placement_policy import (
    RESTART_SECONDS,
    StageUtilization,
    choose_double,
    choose_warm,
)
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.plan import WorkerShape
from daskinfer.units import format_duration


class WorkerAssignment:
    """Workers and their posts, as plain state. `now` is the time in seconds, by any monotonic clock.

    Parameters
    ----------
    requirements
        What is wanted.
    generations
        Those that must be in place before the first partition starts.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_rules, make_worker
    >>> workers = WorkerAssignment(make_rules(replicas=(1, 1)).requirements)
    >>> workers.enlist([make_worker("a"), make_worker("b")])
    [LoadShard(stage=0, worker='a', generation=0), LoadShard(stage=1, worker='b', generation=0)]
    """

    def __init__(self, requirements: WorkerRequirements, generations: Sequence[int] = (0,)) -> None:
        self.wants = requirements
        self._stages = requirements.stages
        self._replicas = list(requirements.replicas)
        self._workers: dict[str, WorkerShape] = {}
        self._spares: list[str] = []
        self._posts = AssignmentTable(len(self._stages))
        # Standbys that make room for a stage that they do not keep -> what they are still to let go of.
        self._turning: dict[str, set[int]] = {}
        # Workers that are to leave -> the requests for it; of these, those that nothing needs any more.
        self._leaving: dict[str, list[int]] = {}
        self._departing: set[str] = set()
        self._barred = set(requirements.drained)
        self._unfit: set[tuple[int, str]] = set()
        self.generations = list(generations)
        self._acknowledged: dict[tuple[int, int], set[str]] = defaultdict(set)
        self._empty_since: dict[int, float] = {}
        self._short_since: float | None = None
        self._load_seconds = 0.0
        self.meter = StageUtilization(len(self._stages))
        self.complete = False

    # What others ask

    def __contains__(self, worker: str) -> bool:
        return worker in self._workers

    @property
    def posts(self) -> list[tuple[int, str]]:
        """(stage, worker) of every post."""
        return [(post.stage, post.worker) for post in self._posts]

    def ready(self, generation: int, stage: int) -> list[str]:
        """Return the workers that compute a stage on a generation."""
        return [post.worker for post in self._posts.at(stage) if generation in post.ready]

    def is_loaded(self, generation: int) -> bool:
        """Whether every stage has a worker, and all that compute have acknowledged a generation."""
        return all(self._posts.counts()) and all(generation in post.ready for post in self._posts if post.computes)

    def is_loading(self, generation: int, stage: int, worker: str) -> bool:
        """Whether a worker was asked for a shard, has not acknowledged it, and is still wanted to."""
        post = self._posts.get(stage, worker)
        return post is not None and generation in self.generations and generation not in post.ready

    def is_busy_loading(self, worker: str) -> bool:
        """Whether a worker was asked for any shard that it has not acknowledged."""
        return any(not set(self.generations) <= post.ready for post in self._posts.of(worker))

    def acknowledged(self, generation: int, stage: int) -> set[str]:
        """Return every worker that ever acknowledged this stage's shard of a generation."""
        return self._acknowledged[generation, stage]

    def missing(self, now: float) -> dict[int, float]:
        """Return the stages that nobody computes or is loading -> for how many seconds; a restart may take its time."""
        waits = {stage: now - since for stage, since in self._empty_since.items() if not self._posts.at(stage)}
        return {stage: seconds for stage, seconds in waits.items() if seconds >= RESTART_SECONDS}

    def shape(self, worker: str) -> WorkerShape:
        """Return what a worker is."""
        return self._workers[worker]

    def roster(self) -> tuple[WorkerState, ...]:
        """Return what every worker does."""
        return tuple(
            self._posts.describe(worker, shape.name, worker in self._leaving, self.generations)
            for worker, shape in sorted(self._workers.items())
        )

    # What happens

    def enlist(self, workers: Iterable[WorkerShape], now: float = 0.0) -> list[Action]:
        """Take in workers."""
        for worker in sorted(workers, key=lambda worker: worker.address):
            is_new = worker.address not in self._workers and not self._barred & {worker.address, worker.name}
            if is_new and declares(worker, self.wants.requires):
                self._workers[worker.address] = worker
                self._spares.append(worker.address)
        return self.fill(now)

    def acknowledge(self, generation: int, stage: int, worker: str, now: float) -> list[Action]:
        """Note that a worker holds a shard. The first resource tags are granted together, once every post has its snapshots."""
        post = self._posts.get(stage, worker)
        if post is None or generation not in self.generations:
            return []  # lost or moved while it was loading, or the generation was given up
        if not post.ready:
            self._load_seconds = max(self._load_seconds, now - post.since)
        post.ready.add(generation)
        self._acknowledged[generation, stage].add(worker)
        if not self.complete:
            return self._begin(now)
        return [*(self._grant(post, [generation], now) if post.computes else []), *self._settle(now)]

    def lose(self, worker: str, now: float) -> tuple[int, ...]:
        """Strike a worker off; return the stages that it computed. `fill` says what to do about it."""
        if worker in self._spares:
            self._spares.remove(worker)
        self._turning.pop(worker, None)
        self._departing.discard(worker)
        self._workers.pop(worker, None)
        lost = self._posts.of(worker)
        for post in lost:
            self._drop(post, now)
        return tuple(post.stage for post in lost if post.computes)

    def fill(self, now: float) -> list[Action]:
        """Give workers to the stages that lack some, the emptiest first; then let standbys keep what they can."""
        actions: list[Action] = []
        while (placed := self._man_one(now)) is not None:
            actions += placed
        actions += self._warm(now)
        for stage in self._short():
            # Whoever computes it is to leave, and nobody else is there.
            if self.complete and self._posts.at(stage) and not self._posts.at(stage, without=self._leaving):
                actions += self._double(stage, now)
        return [*actions, *self._settle(now)]

    def give_up(self, stage: int, worker: str, now: float) -> list[Action]:
        """Do without a post whose shard could not be loaded."""
        post = self._posts.get(stage, worker)
        assert post is not None
        self._unfit.add((stage, worker))
        self._drop(post, now)
        if not self._posts.of(worker) and worker not in self._leaving:
            self._spares.append(worker)
        return [ReleaseShard(worker, stage), *self.fill(now)]

    def add_generation(self, generation: int) -> None:
        """Let every worker load what it holds on one more generation."""
        self.generations.append(generation)

    def retire(self, generation: int) -> None:
        """Forget a generation that nothing is computed on any more."""
        self.generations.remove(generation)
        for post in self._posts:
            post.ready.discard(generation)

    def look(self, left: int, now: float) -> list[Action]:
        """Do what is due as time goes by, with so many partitions left."""
        for stage, count in enumerate(self._posts.counts()):
            if not count:
                self._empty_since.setdefault(stage, now)
        if self.complete:
            actions = self._grow(left, now)
        else:
            self._short_since = (self._short_since or now) if self._short() else None
            actions = self._begin(now)
        for stage in self.missing(now):
            actions += self._double(stage, now)
        return actions

    def drain(self, number: int, worker: str, now: float) -> list[Action]:
        """Let a worker go, for the request of this number."""
        if worker not in self._workers:
            gone = Answer(number, f"{worker} does not work for the job any more")
            return [] if self.wants.is_shared else [gone]
        self._leaving.setdefault(worker, []).append(number)
        self._barred |= {worker, self._workers[worker].name} - {""}
        if worker in self._spares:
            self._spares.remove(worker)
        self._turning.pop(worker, None)
        actions = self.fill(now)
        for post in self._posts.of(worker):
            if post.computes and not self._posts.at(post.stage, without=self._leaving):
                detail = f"{worker} goes on until somebody takes over; {self.wants.describe_missing(post.stage)}"
                actions.append(IncidentRecord("drain-waits", detail))
        return actions

    def stood_down(self, worker: str, stage: int | None, now: float) -> list[Action]:
        """Note that a worker has nothing of a stage any more, or nothing of the job."""
        if stage is None:
            self._workers.pop(worker, None)
        elif worker in self._turning:
            self._turning[worker].discard(stage)
            if not self._turning[worker]:
                del self._turning[worker]
                self._spares.append(worker)
        return self.fill(now)

    # Posts

    def _short(self) -> list[int]:
        return self._posts.short(self._replicas, without=self._leaving)

    def _drop(self, post: ShardAssignment, now: float) -> None:
        self._posts.remove(post)
        self.meter.restart(now)
        if post.duty == "own" and self._replicas[post.stage] > self.wants.replicas[post.stage]:
            self._replicas[post.stage] -= 1
        if post.computes and not self._posts.at(post.stage):
            self._empty_since.setdefault(post.stage, now)

    def _take_on(self, stage: int, worker: str, duty: Role, now: float) -> list[Action]:
        """Give a worker a post; what it keeps warm it need not load."""
        post = self._posts.get(stage, worker)
        if post is not None:
            post.duty = duty
            return self._grant(post, self.generations, now) if self.complete else self._begin(now)
        self._posts.add(ShardAssignment(stage, worker, duty, now))
        return [LoadShard(stage, worker, generation) for generation in self.generations]

    def _grant(self, post: ShardAssignment, generations: Collection[int], now: float) -> list[Action]:
        self._empty_since.pop(post.stage, None)
        self.meter.restart(now)
        return [GrantTag(post.stage, post.worker, generation) for generation in generations if generation in post.ready]

    def _begin(self, now: float) -> list[Action]:
        """Grant the first resource tags once every post has its worker, or was waited for long enough."""
        is_waiting = self._short_since is None or now - self._short_since < RESTART_SECONDS
        if (self._short() and is_waiting) or not all(map(self.is_loaded, self.generations)):
            return []
        self.complete = True
        self._empty_since.clear()
        self.meter.restart(now)
        return [
            GrantTag(post.stage, post.worker, generation)
            for generation in self.generations
            for post in self._posts
            if post.computes
        ]

    # Decisions

    def _man_one(self, now: float) -> list[Action] | None:
        """Give one worker to a stage that lacks some; None where there is no such stage, or nobody for it."""
        for stage in self._short():
            if (placed := self._man(stage, now)) is not None:
                return placed
        return None

    def _man(self, stage: int, now: float) -> list[Action] | None:
        standbys = self._posts.standbys(without=self._leaving)
        warm = [post for worker in standbys if (post := self._posts.get(stage, worker)) is not None]
        if warm:
            post = max(warm, key=lambda post: len(post.ready))
            note = IncidentRecord(
                "standby-used", f"{post.worker}, which kept stage {stage} warm, computes it from now on"
            )
            return [note, *self._take_on(stage, post.worker, "own", now)]
        spare = next((worker for worker in self._spares if (stage, worker) not in self._unfit), None)
        if spare is not None:
            self._spares.remove(spare)
            return self._take_on(stage, spare, "own", now)
        if standbys and not self._turning and not self._posts.at(stage):
            worker, kept = next(iter(standbys.items()))
            self._turning[worker] = set(kept)
            for post in self._posts.of(worker):
                self._drop(post, now)
            return [ReleaseShard(worker, other) for other in kept]
        return None

    def _warm(self, now: float) -> list[Action]:
        """Let spare workers become standbys, as many as are wanted."""
        actions: list[Action] = []
        for worker in list(self._spares):
            if len(self._posts.standbys(without=self._leaving)) + len(self._turning) >= self.wants.standby:
                break
            warm = self._posts.warm_counts(without=self._leaving)
            shape = self._workers[worker]
            chosen = choose_warm(self._stages, shape, self._posts.counts(), warm, self.wants.copies)
            able = [stage for stage in chosen if (stage, worker) not in self._unfit]
            for stage in able:
                actions += self._take_on(stage, worker, "standby", now)
            if able:
                self._spares.remove(worker)
        return actions

    def _double(self, stage: int, now: float) -> list[Action]:
        """Let another stage's worker take a stage on."""
        held = {
            worker: [post.stage for post in self._posts.of(worker)]
            for worker in self._workers
            if worker not in self._leaving
            and (stage, worker) not in self._unfit
            and any(post.computes and post.ready for post in self._posts.of(worker))
        }
        worker = choose_double(self._stages, stage, held, self._workers, self._posts.counts(), self.wants.copies)
        if worker is None:
            return []
        own = " and ".join(str(post.stage) for post in self._posts.of(worker) if post.computes)
        note = IncidentRecord(
            "stage-doubled", f"{worker} takes on stage {stage} beside stage {own}: nobody else is left for it"
        )
        return [note, *self._take_on(stage, worker, "double", now)]

    def _grow(self, left: int, now: float) -> list[Action]:
        """Make replicas of workers that nothing else needs, where that pays."""
        if not self._spares or not all(map(self.is_loaded, self.generations)):
            return []
        growth = self.meter.choose_growth(self._posts.counts(), len(self._spares), left, self._load_seconds, now)
        if growth is None:
            return []
        actions: list[Action] = []
        why = f"stage {growth.stages[0]} was busy {min(growth.busy, 1):.0%} of the time"
        for stage in growth.stages:
            worker = next((spare for spare in self._spares if (stage, spare) not in self._unfit), None)
            if worker is not None:
                self._spares.remove(worker)
                self._replicas[stage] += 1
                saves = f"this should save {format_duration(growth.seconds)}"
                actions.append(
                    IncidentRecord("replica-added", f"{worker} joins the workers of stage {stage}: {why}, {saves}")
                )
                actions += self._take_on(stage, worker, "own", now)
        return actions

    def _settle(self, now: float) -> list[Action]:
        """Let go of whoever is not needed any more: those who double, and those who are to leave."""
        actions: list[Action] = []
        for post in self._posts:
            if post.duty == "double" and self._is_relieved(post):
                self._drop(post, now)
                actions.append(
                    IncidentRecord(
                        "stage-relieved", f"{post.worker} gives stage {post.stage} back to a worker of its own"
                    )
                )
                actions.append(ReleaseShard(post.worker, post.stage))
        for worker in self._leaving.keys() & self._workers.keys() - self._departing:
            if all(self._is_relieved(post) for post in self._posts.of(worker) if post.computes):
                for post in self._posts.of(worker):
                    self._drop(post, now)
                self._departing.add(worker)
                actions.append(ReleaseShard(worker, None))
        for worker in sorted(self._leaving.keys() - self._workers.keys()):
            kind, detail = "worker-lost", f"{worker} was lost before it had finished"
            if worker in self._departing:
                self._departing.remove(worker)
                kind, detail = "drained", f"{worker} has finished its work and holds nothing of the job any more"
            actions.append(IncidentRecord(kind, detail))
            actions += [Answer(number, detail) for number in self._leaving.pop(worker)]
        return actions

    def _is_relieved(self, post: ShardAssignment) -> bool:
        """Whether another worker, one that stays, computes a post's stage on all generations."""
        others = [other for other in self._posts.at(post.stage, without=self._leaving) if other is not post]
        if post.duty == "double" and post.worker not in self._leaving:
            others = [other for other in others if other.duty == "own"]
        return any(set(self.generations) <= other.ready for other in others)
