"""Where workers are too few, or more than enough: rules over plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from daskinfer.planning.plan import SHARD_SHARE
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.plan import StagePlan, WorkerShape

RESTART_SECONDS = 5.0
"""How long a stage waits for a new worker before another stage's worker takes it on: a nanny restarts a process, which
imports what it needs and registers, within about this time."""
OBSERVED_SECONDS = 5.0
OBSERVED_COMMITS = 4
"""How long, and over how many commits, stages are watched before a spare worker is given to one: partitions are counted
whole, when they are committed."""
LIMITING = 0.6
"""Busy share from which a stage counts as what limits the job; below it something else does."""
PAYS = 3.0
"""How many times the seconds of loading its shard a replica must save."""


def fits(stages: Sequence[StagePlan], worker: WorkerShape, copies: int) -> bool:
    """Whether a worker has memory for the shards of all these stages, `copies` snapshots of each.

    A stage that is offloaded takes all there is. A worker of unknown memory takes everything, as in a plan.

    Examples
    --------
    >>> worker = WorkerShape(address="a", threads=1, memory=100, resources={})
    >>> stages = [StagePlan(index=n, first=n, last=n + 1, parameter_bytes=30, share=0.5) for n in range(2)]
    >>> fits(stages, worker, copies=1), fits(stages, worker, copies=2)
    (True, False)
    """
    if not worker.shard_memory:
        return True
    if any(stage.offload != "none" for stage in stages):
        return len(stages) == 1
    return sum(stage.parameter_bytes for stage in stages) * copies <= worker.shard_memory * SHARD_SHARE


def choose_warm(
    stages: Sequence[StagePlan], worker: WorkerShape, holders: Sequence[int], warm: Sequence[int], copies: int
) -> tuple[int, ...]:
    """Return the stages that a standby keeps: the biggest need first, as many as its memory holds.

    A stage that no other standby keeps needs one most; then the one with the fewest workers, since its loss is felt
    most; then the one that takes longest to load.

    Parameters
    ----------
    stages
        The plan's.
    worker
        The standby.
    holders, warm
        For every stage, how many workers compute it and how many standbys keep it.
    copies
        Snapshots that a worker may have to hold.

    Examples
    --------
    >>> worker = WorkerShape(address="a", threads=1, memory=100, resources={})
    >>> stages = [StagePlan(index=n, first=n, last=n + 1, parameter_bytes=60, share=0.5) for n in range(2)]
    >>> choose_warm(stages, worker, holders=[2, 1], warm=[0, 0], copies=1)
    (1,)
    """
    chosen: list[int] = []
    for stage in sorted(stages, key=lambda stage: (warm[stage.index], holders[stage.index], -stage.parameter_bytes)):
        if fits([stages[index] for index in (*chosen, stage.index)], worker, copies):
            chosen.append(stage.index)
    return tuple(sorted(chosen))


def choose_double(
    stages: Sequence[StagePlan],
    lost: int,
    held: Mapping[str, Collection[int]],
    workers: Mapping[str, WorkerShape],
    holders: Sequence[int],
    copies: int,
) -> str | None:
    """Return the worker that takes on a lost stage beside its own: of those with room for both the least loaded.

    Parameters
    ----------
    stages
        The plan's.
    lost
        The stage without a worker.
    held
        Workers that could -> the stages whose shards they hold.
    workers
        What they are.
    holders
        How many workers compute every stage: they share its work.
    copies
        Snapshots that a worker may have to hold.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_plan, make_worker
    >>> workers = {name: make_worker(name) for name in "ab"}
    >>> choose_double(make_plan((1, 1, 1)).stages, 2, {"a": [0, 1], "b": [1]}, workers, holders=[1, 2, 0], copies=1)
    'b'
    """
    able = [
        worker
        for worker, own in held.items()
        if fits([stages[index] for index in {*own, lost}], workers[worker], copies)
    ]
    # A shard that is there already, kept warm, needs no loading.
    return min(
        able,
        key=lambda worker: (
            lost not in held[worker],
            sum(stages[index].share / max(1, holders[index]) for index in held[worker]),
            worker,
        ),
        default=None,
    )


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """Stages that spare workers should be given to, one each, and what that is expected to save."""

    stages: tuple[int, ...]
    busy: float
    """Share of its workers' time that the first of them was at work."""
    seconds: float
    """Saved until the end."""


class StageUtilization:
    """How busy the stages have been since their workers last changed.

    Parameters
    ----------
    stages
        How many there are.

    Examples
    --------
    >>> meter = StageUtilization(stages=2)
    >>> meter.restart(now=0.0)
    >>> meter.choose_growth(holders=[1, 1], spares=1, left=100, load_seconds=1.0, now=60.0) is None
    True
    """

    def __init__(self, stages: int) -> None:
        self._seconds = [0.0] * stages
        self._commits = 0
        self._since = 0.0

    def restart(self, now: float) -> None:
        """Begin anew: stages have other workers now."""
        self._seconds = [0.0] * len(self._seconds)
        self._commits = 0
        self._since = now

    def note(self, record: CommitRecord) -> None:
        """Count a partition that was committed."""
        self._commits += 1
        for trail in record.trail:
            self._seconds[trail.stage] += trail.compute + trail.receive + trail.send

    def choose_growth(
        self, holders: Sequence[int], spares: int, left: int, load_seconds: float, now: float
    ) -> ScaleUp | None:
        """Return where spare workers pay: where they save clearly more time than loading takes; None where they do not.

        Parameters
        ----------
        holders
            Workers of every stage.
        spares
            Workers to give away.
        left
            Partitions that are not committed.
        load_seconds
            What loading a shard took elsewhere.
        now
            The time.
        """
        elapsed = now - self._since
        if not spares or elapsed < OBSERVED_SECONDS or self._commits < OBSERVED_COMMITS:
            return None
        busy = [seconds / count / elapsed for seconds, count in zip(self._seconds, holders, strict=True)]
        if max(busy) < LIMITING:
            return None
        best: ScaleUp | None = None
        counts, chosen = list(holders), list[int]()
        for _ in range(spares):
            loads = [seconds / count for seconds, count in zip(self._seconds, counts, strict=True)]
            stage = loads.index(max(loads))
            counts[stage] += 1
            chosen.append(stage)
            after = max(seconds / count for seconds, count in zip(self._seconds, counts, strict=True)) / elapsed
            saved = left * elapsed / self._commits * (1 - after / max(busy))
            if best is None or saved > best.seconds:
                best = ScaleUp(tuple(chosen), busy[chosen[0]], saved)
        return best if best is not None and best.seconds > PAYS * max(load_seconds, 1.0) else None
