"""Posts: which worker holds which stage's shard, and what for; and what a job wants of its workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from daskinfer.spec.job.control import Doing, WorkerState
from daskinfer.spec.plan import StagePlan
from daskinfer.units import format_bytes

Role = Literal["own", "double", "standby"]
"""What a worker holds a shard for: its own stage, one that has no other worker left, or one that may lose its worker."""


@dataclass(frozen=True, slots=True)
class WorkerRequirements:
    """What a job wants of its workers."""

    stages: tuple[StagePlan, ...]
    """The plan's."""
    replicas: tuple[int, ...]
    """Workers wanted for every stage."""
    requires: dict[str, float]
    """Tags that a stage's worker must declare."""
    standby: int = 0
    """Workers that keep shards warm."""
    copies: int = 1
    """Snapshots that a worker may have to hold."""
    drained: frozenset[str] = frozenset()
    """Workers that the job may not use any more."""
    is_shared: bool = False
    """Whether other drivers run the job too, with workers of their own."""

    def describe_missing(self, stage: int) -> str:
        """Say what a stage without a worker needs."""
        plan = self.stages[stage]
        tags = ", ".join(f"{tag}: {amount:g}" for tag, amount in self.requires.items()) or "no tag at all"
        layers = str(plan.first) if plan.last == plan.first + 1 else f"{plan.first}-{plan.last - 1}"
        return (
            f"stage {stage} (layers {layers}): no worker is left for it that declares {tags}, and none of the others has "
            f"room for its {format_bytes(plan.parameter_bytes * self.copies)} beside what it holds"
        )


@dataclass(slots=True)
class ShardAssignment:
    """A worker that holds a stage's shard, or is loading it."""

    stage: int
    worker: str
    duty: Role
    since: float
    """When it was asked to load."""
    ready: set[int] = field(default_factory=set)
    """Generations that it has acknowledged."""

    @property
    def computes(self) -> bool:
        """Whether it is there to compute, and not to wait."""
        return self.duty != "standby"


class AssignmentTable:
    """All posts of a job, in the order in which they were given.

    Parameters
    ----------
    stages
        How many there are.

    Examples
    --------
    >>> table = AssignmentTable(stages=2)
    >>> table.add(ShardAssignment(stage=0, worker="a", duty="own", since=0.0))
    >>> table.add(ShardAssignment(stage=1, worker="b", duty="standby", since=0.0))
    >>> table.counts(), table.warm_counts(), table.short([1, 1])
    ([1, 0], [0, 1], [1])
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._posts: dict[tuple[int, str], ShardAssignment] = {}

    def __iter__(self) -> Iterator[ShardAssignment]:
        return iter(list(self._posts.values()))

    def get(self, stage: int, worker: str) -> ShardAssignment | None:
        """Return a worker's post at a stage, if it has one."""
        return self._posts.get((stage, worker))

    def add(self, post: ShardAssignment) -> None:
        """Give a post."""
        self._posts[post.stage, post.worker] = post

    def remove(self, post: ShardAssignment) -> None:
        """Take a post back."""
        del self._posts[post.stage, post.worker]

    def of(self, worker: str) -> list[ShardAssignment]:
        """Return a worker's posts."""
        return [post for post in self if post.worker == worker]

    def at(self, stage: int, without: Collection[str] = ()) -> list[ShardAssignment]:
        """Return the posts that compute a stage, or are loading it for that."""
        return [post for post in self if post.stage == stage and post.computes and post.worker not in without]

    def counts(self) -> list[int]:
        """Return how many compute every stage."""
        return [len(self.at(stage)) for stage in range(self._stages)]

    def standbys(self, without: Collection[str] = ()) -> dict[str, list[int]]:
        """Return the workers that only keep shards warm -> the stages."""
        kept: dict[str, list[int]] = defaultdict(list)
        for post in self:
            kept[post.worker].append(post.stage)
        busy = {post.worker for post in self if post.computes}
        return {worker: stages for worker, stages in kept.items() if worker not in busy and worker not in without}

    def warm_counts(self, without: Collection[str] = ()) -> list[int]:
        """Return how many standbys keep every stage."""
        kept = self.standbys(without).values()
        return [sum(stage in stages for stages in kept) for stage in range(self._stages)]

    def short(self, wanted: list[int], without: Collection[str] = ()) -> list[int]:
        """Return the stages that have fewer workers of their own than are wanted, the emptiest first."""
        own = [sum(post.duty == "own" for post in self.at(stage, without)) for stage in range(self._stages)]
        found = [stage for stage, count in enumerate(own) if count < wanted[stage]]
        return sorted(found, key=lambda stage: (own[stage] / wanted[stage], stage))

    def describe(self, worker: str, name: str, is_leaving: bool, generations: Collection[int]) -> WorkerState:
        """Return what a worker does, with generations that are to be in place."""
        posts = self.of(worker)
        computes = [post for post in posts if post.computes]
        does: Doing = "computes" if computes else "stands by" if posts else "waits"
        if is_leaving:
            does = "leaves"
        elif any(not set(generations) <= post.ready for post in computes or posts):
            does = "loads"
        return WorkerState(
            worker=worker,
            name=name,
            does=does,
            stages=tuple(sorted(post.stage for post in computes)),
            warm=tuple(sorted(post.stage for post in posts if not post.computes)),
        )
