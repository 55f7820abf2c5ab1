"""Which worker holds which stage, of which generations: the part of the driver's logic that deals with coming and going."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daskinfer.planning.placement import declares
from daskinfer.spec.plan import WorkerShape


@dataclass(slots=True)
class _Post:
    stage: int
    ready: set[int] = field(default_factory=set)


class Crew:
    """Workers and their posts, as plain state.

    Parameters
    ----------
    replicas
        Workers wanted for every stage.
    requires
        Tags that a stage's worker must declare.
    generations
        Those that must be in place before the first partition starts.
    """

    def __init__(
        self, replicas: Sequence[int], requires: Mapping[str, float], generations: Sequence[int] = (0,)
    ) -> None:
        self._replicas = tuple(replicas)
        self._requires = dict(requires)
        self._posts: dict[str, _Post] = {}
        self._spares: list[str] = []
        self.generations = list(generations)
        self._acknowledged: dict[tuple[int, int], set[str]] = defaultdict(set)
        self._empty_since: dict[int, float] = {}
        self.complete = False

    @property
    def wanted(self) -> str:
        """The required tags, for messages."""
        return ", ".join(f"{tag}: {amount:g}" for tag, amount in self._requires.items()) or "no tag at all"

    def __contains__(self, worker: str) -> bool:
        return worker in self._posts or worker in self._spares

    def enlist(self, workers: Sequence[WorkerShape]) -> list[tuple[int, str]]:
        """Take in workers; return (stage, worker) for every shard to load."""
        for worker in sorted(workers, key=lambda worker: worker.address):
            if worker.address not in self and declares(worker, self._requires):
                self._spares.append(worker.address)
        return self.fill()

    def fill(self) -> list[tuple[int, str]]:
        """Give spare workers to the stages that lack some, the emptiest first."""
        placed = []
        while self._spares:
            held = [sum(post.stage == stage for post in self._posts.values()) for stage in range(len(self._replicas))]
            short = [stage for stage, count in enumerate(held) if count < self._replicas[stage]]
            if not short:
                break
            stage = min(short, key=lambda stage: (held[stage] / self._replicas[stage], stage))
            worker = self._spares.pop(0)
            self._posts[worker] = _Post(stage)
            placed.append((stage, worker))
        return placed

    def acknowledge(self, generation: int, stage: int, worker: str) -> list[tuple[int, int, str]]:
        """Note that a worker holds its shard; return (generation, stage, worker) for every token to grant.

        The first tokens are granted together, once every post has acknowledged its snapshots.
        """
        post = self._posts.get(worker)
        if post is None or post.stage != stage or generation not in self.generations:
            return []  # lost or moved while it was loading, or the generation was given up
        post.ready.add(generation)
        self._acknowledged[generation, stage].add(worker)
        self._empty_since.pop(stage, None)
        if self.complete:
            return [(generation, stage, worker)]
        if not all(map(self.is_loaded, self.generations)):
            return []
        self.complete = True
        return [
            (generation, post.stage, address)
            for generation in self.generations
            for address, post in self._posts.items()
        ]

    def is_loaded(self, generation: int) -> bool:
        """Tell whether every post is manned and has acknowledged a generation."""
        manned = len(self._posts) == sum(self._replicas)
        return manned and all(generation in post.ready for post in self._posts.values())

    @property
    def posts(self) -> list[tuple[int, str]]:
        """(stage, worker) of every post."""
        return [(post.stage, worker) for worker, post in self._posts.items()]

    def retire(self, generation: int) -> None:
        """Forget a generation that nothing is computed on any more."""
        self.generations.remove(generation)
        for post in self._posts.values():
            post.ready.discard(generation)

    def lose(self, worker: str, now: float) -> int | None:
        """Strike a worker off; return the stage it held, or None."""
        if worker in self._spares:
            self._spares.remove(worker)
        post = self._posts.pop(worker, None)
        if post is None:
            return None
        if not any(other.stage == post.stage for other in self._posts.values()):
            self._empty_since.setdefault(post.stage, now)
        return post.stage

    def is_loading(self, generation: int, worker: str) -> bool:
        """Tell whether the worker has a post and has not acknowledged a generation that is wanted."""
        post = self._posts.get(worker)
        return post is not None and generation in self.generations and generation not in post.ready

    def acknowledged(self, generation: int, stage: int) -> set[str]:
        """Return every worker that ever acknowledged this stage's shard of a generation."""
        return self._acknowledged[generation, stage]

    def missing(self, before: float) -> int | None:
        """Return a stage that has had no worker since before then and that none is loading for, if any."""
        held = {post.stage for post in self._posts.values()}
        return next(
            (stage for stage, since in self._empty_since.items() if stage not in held and since <= before), None
        )
