"""Which workers may hold a shard, and how many each stage gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daskinfer.errors import PlanError
from daskinfer.spec.plan import StagePlan, WorkerShape


def eligible_workers(workers: Sequence[WorkerShape], requires: Mapping[str, float]) -> list[WorkerShape]:
    """Return the workers that declare every required tag, in order of address.

    Raises
    ------
    PlanError
        No worker does.

    Examples
    --------
    >>> one = WorkerShape(address="tcp://a:1", threads=1, memory=0, resources={"GPU": 1})
    >>> other = WorkerShape(address="tcp://b:1", threads=1, memory=0, resources={})
    >>> [worker.address for worker in eligible_workers([other, one], {"GPU": 1})]
    ['tcp://a:1']
    """
    found = [worker for worker in workers if declares(worker, requires)]
    if found:
        return sorted(found, key=lambda worker: worker.address)
    wanted = ", ".join(f"{tag}: {amount:g}" for tag, amount in requires.items())
    declared = sorted({f"{tag}: {amount:g}" for worker in workers for tag, amount in worker.resources.items()})
    raise PlanError(
        f"placement.requires asks for {{{wanted}}}, but none of the {len(workers)} workers declares it "
        f"(declared: {', '.join(declared) or 'nothing'})",
        hint="Start workers with --resources, set cluster.local.resources, or change placement.requires.",
    )


def declares(worker: WorkerShape, requires: Mapping[str, float]) -> bool:
    """Whether the worker has enough of every required tag.

    Examples
    --------
    >>> worker = WorkerShape(address="tcp://a:1", threads=1, memory=0, resources={"GPU": 1})
    >>> declares(worker, {"GPU": 1}), declares(worker, {"GPU": 2}), declares(worker, {})
    (True, False, True)
    """
    return all(worker.resources.get(tag, 0) >= amount for tag, amount in requires.items())


def count_replicas(stages: Sequence[StagePlan], workers: int, standby: int = 0) -> tuple[int, ...]:
    """Share workers out among stages so that the slowest stage is as fast as possible.

    One worker each, then each further one that is not to stand by to the stage with the most work per worker.

    Raises
    ------
    PlanError
        Fewer workers than stages and standbys.

    Examples
    --------
    >>> about = {"first": 0, "last": 1, "parameter_bytes": 9}
    >>> stages = [StagePlan(index=n, share=share, **about) for n, share in enumerate([0.75, 0.25])]
    >>> count_replicas(stages, workers=4), count_replicas(stages, workers=4, standby=1)
    ((3, 1), (2, 1))
    """
    if workers < len(stages) + standby:
        wanted = f"{len(stages)} stages need {len(stages)} workers with the required tags"
        fewer = ", or lower placement.standby" if standby else ""
        if standby:
            wanted += f" and placement.standby {standby} more"
        raise PlanError(
            f"{wanted}; there are {workers}",
            hint=f"Set pipeline.stages to {max(1, workers - standby)} or fewer, start more workers "
            f"(cluster.local.workers){fewer}.",
        )
    replicas = [1] * len(stages)
    for _ in range(workers - len(stages) - standby):
        slowest = max(range(len(stages)), key=lambda index: (stages[index].share / replicas[index], -index))
        replicas[slowest] += 1
    return tuple(replicas)
