"""Cutting a row of layers into stages of near equal work."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.errors import PlanError
from daskinfer.spec.plan import LayerProfile, ModelProfile, StagePlan
from daskinfer.units import format_bytes


def cut_layers(work: Sequence[int], stages: int) -> tuple[int, ...]:
    """Return the first layer of every stage such that the heaviest stage is as light as possible.

    The linear partition problem by dynamic programming, O(stages * layers**2).

    Parameters
    ----------
    work
        Cost of every layer, shape (layers,); what precedes and follows them is added to the ends by the caller.
    stages
        How many contiguous stages, at most `len(work)`.
    """
    layers = len(work)
    sums = [0]
    for cost in work:
        sums.append(sums[-1] + cost)
    # best[s][n]: (heaviest stage, start of the last stage) when the first n layers make s stages
    best = [[(0.0, 0)] * (layers + 1) for _ in range(stages + 1)]
    for n in range(1, layers + 1):
        best[1][n] = (sums[n], 0)
    for s in range(2, stages + 1):
        for n in range(s, layers + 1):
            best[s][n] = min((max(best[s - 1][cut][0], sums[n] - sums[cut]), cut) for cut in range(s - 1, n))
    starts = []
    end = layers
    for s in range(stages, 0, -1):
        end = best[s][end][1]
        starts.append(end)
    return tuple(reversed(starts))


def make_stages(profile: ModelProfile, starts: Sequence[int]) -> tuple[StagePlan, ...]:
    """Return the stages that begin at these layers; the first owns the entry, the last the head."""
    ends = [*starts[1:], len(profile.layers)]
    owned = [list(profile.layers[first:last]) for first, last in zip(starts, ends, strict=True)]
    owned[0] = [*profile.entry, *owned[0]]
    owned[-1] = [*owned[-1], *profile.head]
    total = sum(_work(layers) for layers in owned)
    return tuple(
        StagePlan(
            index=index,
            first=first,
            last=last,
            groups=tuple(layer.name for layer in layers),
            parameter_bytes=sum(layer.parameter_bytes for layer in layers),
            share=_work(layers) / total if total else 1 / len(owned),
        )
        for index, (first, last, layers) in enumerate(zip(starts, ends, owned, strict=True))
    )


def choose_starts(
    profile: ModelProfile, wanted: str | int | tuple[int, ...], memory: int, workers: int
) -> tuple[int, ...]:
    """Turn `pipeline.stages` into the first layer of every stage.

    Parameters
    ----------
    wanted
        `auto` (the fewest stages whose shards fit `memory`), a number, or the first layers after the first stage.
    memory
        Bytes that the smallest worker has for a shard; 0 where unknown.
    workers
        Workers there are; `auto` needs no more stages than that.

    Raises
    ------
    PlanError
        More stages than layers, layers out of order, or no cut that fits.
    """
    layers = len(profile.layers)
    if isinstance(wanted, tuple):
        starts = (0, *wanted)
        if list(starts) != sorted(set(starts)) or starts[-1] >= layers:
            raise PlanError(
                f"pipeline.stages: {list(wanted)} are not rising layer numbers between 1 and {layers - 1}",
                hint=f"Give the first layer of every stage after the first; [{(layers + 1) // 2}] would cut the "
                f"{layers} layers in halves.",
            )
        return starts
    work = [layer.flops_per_token for layer in profile.layers]
    work[0] += _work(profile.entry)
    work[-1] += _work(profile.head)
    if isinstance(wanted, int):
        if wanted > layers:
            raise PlanError(
                f"pipeline.stages: {wanted} stages, but {profile.architecture} has only {layers} layers",
                hint=f"Set pipeline.stages to {layers} or fewer.",
            )
        return cut_layers(work, wanted)
    for stages in range(1, min(layers, workers) + 1):
        starts = cut_layers(work, stages)
        largest = max(stage.parameter_bytes for stage in make_stages(profile, starts))
        if not memory or largest <= memory:
            return starts
    raise PlanError(
        f"the smallest shard of {profile.architecture} over {workers} workers needs {format_bytes(largest)}, "
        f"but a worker has {format_bytes(memory)} for it",
        hint="Add workers or memory, or choose a smaller dtype.",
    )


def _work(layers: Sequence[LayerProfile]) -> int:
    return sum(layer.flops_per_token for layer in layers)
