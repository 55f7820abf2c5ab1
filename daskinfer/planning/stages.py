"""Cutting a row of layers into stages of near equal work."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.errors import PlanError
from daskinfer.spec.plan import ModelProfile, StagePlan
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

    Examples
    --------
    >>> cut_layers([1, 1, 1, 5], stages=2)
    (0, 3)
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


def make_stages(profile: ModelProfile, starts: Sequence[int], length: int) -> tuple[StagePlan, ...]:
    """Return the stages that begin at these layers; `length` is what their shares of the work are compared at.

    Examples
    --------
    >>> from daskinfer.spec.plan import LayerProfile
    >>> layers = [LayerProfile(name=f"layer.{n}", tensors=(f"w{n}",), flops=(100, 0), cut=()) for n in range(4)]
    >>> sizes = {f"w{n}": 8 for n in range(4)}
    >>> profile = ModelProfile(architecture="BertModel", max_length=512, layers=layers, sizes=sizes)
    >>> first, second = make_stages(profile, (0, 1), length=128)
    >>> (second.first, second.last, second.parameter_bytes, second.share)
    (1, 4, 24, 0.75)
    """
    ends = [*starts[1:], len(profile.layers)]
    total = profile.work(0, len(profile.layers), length)
    return tuple(
        StagePlan(
            index=index,
            first=first,
            last=last,
            parameter_bytes=profile.stage_bytes(first, last),
            stored_bytes=profile.stored_bytes(first, last),
            share=profile.work(first, last, length) / total if total else 1 / len(ends),
        )
        for index, (first, last) in enumerate(zip(starts, ends, strict=True))
    )


def choose_starts(
    profile: ModelProfile,
    wanted: str | int | tuple[int | str, ...],
    memory: int,
    workers: int,
    length: int,
    must_fit: bool = True,
) -> tuple[int, ...]:
    """Turn `pipeline.stages` into the first layer of every stage.

    Parameters
    ----------
    wanted
        `auto` (the fewest stages whose shards fit `memory`), a number, or the first layers after the first stage, by
        number or by name.
    memory
        Bytes that the smallest worker has for a shard; 0 where unknown.
    workers
        Workers there are; `auto` needs no more stages than that.
    length
        Tokens of a typical row, which the work is compared at.
    must_fit
        Whether shards larger than `memory` are refused; otherwise `auto` takes as many stages as there can be.

    Raises
    ------
    PlanError
        More stages than layers, layers out of order, or no cut that fits.

    Examples
    --------
    >>> from daskinfer.spec.plan import LayerProfile
    >>> layers = [LayerProfile(name=f"layer.{n}", tensors=(f"w{n}",), flops=(100, 0), cut=()) for n in range(4)]
    >>> sizes = {f"w{n}": 8 for n in range(4)}
    >>> profile = ModelProfile(architecture="BertModel", max_length=512, layers=layers, sizes=sizes)
    >>> choose_starts(profile, "auto", memory=16, workers=4, length=128)
    (0, 2)
    >>> choose_starts(profile, ("layer.3",), memory=0, workers=4, length=128)
    (0, 3)
    """
    layers = len(profile.layers)
    if isinstance(wanted, tuple):
        return _find_starts(profile, wanted)
    work = [profile.work(layer, layer + 1, length) for layer in range(layers)]
    if isinstance(wanted, int):
        if wanted > layers:
            raise _refuse_stages(profile, wanted)
        return cut_layers(work, wanted)
    for stages in range(1, min(layers, workers) + 1):
        starts = cut_layers(work, stages)
        largest = max(stage.parameter_bytes for stage in make_stages(profile, starts, length))
        if not memory or largest <= memory:
            return starts
    if not must_fit:
        return starts
    reason = f" It cannot be cut: {profile.uncut}." if profile.uncut else ""
    raise PlanError(
        f"the smallest shard of {profile.architecture} over {workers} workers needs {format_bytes(largest)}, "
        f"but a worker has {format_bytes(memory)} for it.{reason}",
        hint="Add workers or memory, choose a smaller dtype, or set placement.offload to disk.",
    )


def _find_starts(profile: ModelProfile, wanted: tuple[int | str, ...]) -> tuple[int, ...]:
    names = [layer.name for layer in profile.layers]
    layers = len(names)
    unknown = [layer for layer in wanted if isinstance(layer, str) and layer not in names]
    if unknown:
        raise PlanError(
            f"pipeline.stages: {profile.architecture} has no layer {unknown[0]!r}",
            hint=f"Its layers are {names[0]} to {names[-1]}." if layers > 1 else f"It cannot be cut: {profile.uncut}.",
        )
    starts = (0, *(names.index(layer) if isinstance(layer, str) else layer for layer in wanted))
    if len(starts) > layers:
        raise _refuse_stages(profile, len(starts))
    if list(starts) != sorted(set(starts)) or starts[-1] >= layers:
        raise PlanError(
            f"pipeline.stages: {list(wanted)} are not rising layer numbers between 1 and {layers - 1}",
            hint=f"Give the first layer of every stage after the first; [{(layers + 1) // 2}] would cut the "
            f"{layers} layers in halves.",
        )
    return starts


def _refuse_stages(profile: ModelProfile, wanted: int) -> PlanError:
    if profile.uncut:
        return PlanError(
            f"pipeline.stages: {wanted} stages, but {profile.architecture} cannot be cut: {profile.uncut}",
            hint="Set pipeline.stages to 1.",
        )
    layers = len(profile.layers)
    return PlanError(
        f"pipeline.stages: {wanted} stages, but {profile.architecture} has only {layers} layers",
        hint=f"Set pipeline.stages to {layers} or fewer.",
    )
