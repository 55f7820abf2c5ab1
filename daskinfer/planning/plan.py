"""(recipe, model, workers) to a frozen plan, or a refusal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from daskinfer.errors import PlanError
from daskinfer.planning.placement import count_replicas, eligible_workers
from daskinfer.planning.stages import choose_starts, make_stages
from daskinfer.spec.outline import largest_bundle
from daskinfer.spec.plan import ModelProfile, Numerics, Plan, StagePlan, WorkerShape
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.units import format_bytes

# Tokens of a row that layers are compared at; attention grows with the square.
TYPICAL_LENGTH = 128
# Large enough that Python and Dask cost little per token, small enough to stay in a core's cache; on small
# encoders 1,024 to 4,096 tokens are equally fast.
MICROBATCH_TOKENS = 2048
# A worker never waits for its next microbatch when two are assigned to it; a third covers a slow commit.
WINDOW_PER_WORKER = 3
# Share of a worker's memory for microbatches in flight, and for its shard.
WINDOW_SHARE = 0.25
SHARD_SHARE = 0.7
# A Zarr hand-off of one chunk, written and read again: a fixed cost and a rate.
ZARR_SECONDS = 0.004
ZARR_BYTES_PER_SECOND = 4e8
# What a core does on an encoder's layers, for the choice of a transport only.
CORE_FLOPS_PER_SECOND = 5e10
ZARR_BUDGET = 0.05


def make_plan(recipe: Recipe, profile: ModelProfile, workers: Sequence[WorkerShape], numerics: Numerics) -> Plan:
    """Cut the model, size the microbatches and choose transports for these workers.

    Parameters
    ----------
    recipe
        What the user asked for.
    profile
        The model's layers, with the sizes of their tensors in `numerics.dtype`.
    workers
        All workers of the cluster, with or without the required tags.
    numerics
        What the stages compute with.

    Raises
    ------
    PlanError
        Nothing that the recipe allows would fit.

    Examples
    --------
    >>> from daskinfer.spec.plan import LayerProfile
    >>> parts = {"model": {"checkpoint": "minilm@prod"}, "input": {"url": "a.jsonl"}, "output": {"url": "a.zarr"}}
    >>> recipe = Recipe(daskinfer=1, name="demo", pipeline={"stages": 2}, **parts)
    >>> layers = [LayerProfile(name=f"layer.{n}", tensors=(f"w{n}",), flops=(100, 0), cut=()) for n in range(4)]
    >>> sizes = {f"w{n}": 8 for n in range(4)}
    >>> profile = ModelProfile(architecture="BertModel", max_length=512, layers=layers, sizes=sizes)
    >>> workers = [WorkerShape(address=f"tcp://a:{n}", threads=1, memory=0, resources={"GPU": 1}) for n in range(3)]
    >>> versions = {"torch": "2.13.0", "transformers": "5.0.0", "tokenizers": "0.22.0"}
    >>> plan = make_plan(recipe, profile, workers, Numerics(dtype="float32", attention="sdpa", threads=1, **versions))
    >>> [(stage.first, stage.last) for stage in plan.stages], plan.replicas, plan.window
    ([(0, 2), (2, 4)], (2, 1), 9)
    """
    able = eligible_workers(workers, recipe.placement.requires)
    known = [worker.shard_memory for worker in able if worker.shard_memory]
    memory = int(min(known) * SHARD_SHARE) // recipe.consistency.copies if known else 0
    standby = recipe.placement.standby
    max_length = profile.row_tokens or min(recipe.model.options.max_length, profile.max_length or sys.maxsize)
    typical = min(max_length, TYPICAL_LENGTH)
    # A CPU computes out of main memory: there, weights are as much in the way as on the device.
    offload = "none" if recipe.placement.offload == numerics.device else recipe.placement.offload
    starts = choose_starts(
        profile, recipe.pipeline.stages, memory, max(1, len(able) - standby), typical, must_fit=offload == "none"
    )
    stages = tuple(_fit_stage(stage, memory, offload) for stage in make_stages(profile, starts, typical))
    wanted = recipe.pipeline.microbatch_tokens
    direct: Literal["zarr", "direct"] = "direct"
    plan = Plan(
        stages=stages,
        replicas=count_replicas(stages, len(able), standby),
        edges=tuple(profile.layers[start].cut for start in starts[1:]),
        transports=(direct,) * (len(stages) - 1),
        microbatch_tokens=MICROBATCH_TOKENS if wanted == "auto" else wanted,
        sharing=profile.sharing,
        max_length=max_length,
        is_text=profile.row_tokens is None,
        window=1,
        numerics=numerics,
    )
    work = profile.work(0, len(profile.layers), typical) * plan.capacity / typical
    seconds = [work * stage.share / (CORE_FLOPS_PER_SECOND * numerics.threads) for stage in stages]
    transports = tuple(
        _choose_transport(recipe, largest_bundle(edge, *plan.largest), compute)
        for edge, compute in zip(plan.edges, seconds, strict=False)
    )
    return place_plan(plan.model_copy(update={"transports": transports}), recipe, able)


def place_plan(plan: Plan, recipe: Recipe, workers: Sequence[WorkerShape]) -> Plan:
    """Fit a plan's replicas and window to the workers there are now; what decides bits stays.

    Raises
    ------
    PlanError
        Too few workers declare the required tags.

    Examples
    --------
    >>> parts = {"model": {"checkpoint": "minilm@prod"}, "input": {"url": "a.jsonl"}, "output": {"url": "a.zarr"}}
    >>> recipe = Recipe(daskinfer=1, name="demo", **parts)
    >>> versions = {"torch": "2.13.0", "transformers": "5.0.0", "tokenizers": "0.22.0"}
    >>> numerics = Numerics(dtype="float32", attention="sdpa", threads=1, **versions)
    >>> stage = StagePlan(index=0, first=0, last=4, parameter_bytes=32, share=1.0)
    >>> about = {"edges": [], "transports": [], "microbatch_tokens": 2048, "max_length": 256, "window": 3}
    >>> plan = Plan(stages=[stage], replicas=[1], numerics=numerics, **about)
    >>> workers = [WorkerShape(address=f"tcp://a:{n}", threads=1, memory=0, resources={"GPU": 1}) for n in range(2)]
    >>> placed = place_plan(plan, recipe, workers)
    >>> placed.replicas, placed.window, placed.digest == plan.digest
    ((2,), 6, True)
    """
    able = eligible_workers(workers, recipe.placement.requires)
    replicas = count_replicas(plan.stages, len(able), recipe.placement.standby)
    window, budget = recipe.pipeline.window, 0
    if window == "auto":
        window = WINDOW_PER_WORKER * sum(replicas)
        # All that is in flight may meet on one worker.
        budget = int(min((worker.memory for worker in able if worker.memory), default=0) * WINDOW_SHARE)
        if budget and plan.edges:
            bundle = max(largest_bundle(edge, *plan.largest) for edge in plan.edges)
            window = max(1, min(window, budget // bundle))
    return plan.model_copy(update={"replicas": replicas, "window": window, "window_bytes": budget})


def _fit_stage(stage: StagePlan, memory: int, offload: Literal["none", "cpu", "disk"]) -> StagePlan:
    """Return the stage, its weights kept elsewhere where they do not fit and the recipe allows it."""
    if not memory or stage.parameter_bytes <= memory:
        return stage
    if offload != "none":
        return stage.model_copy(update={"offload": offload})
    raise PlanError(
        f"stage {stage.index} (layers {stage.first}-{stage.last - 1}) needs {format_bytes(stage.parameter_bytes)}, "
        f"but a worker has {format_bytes(memory)} for its shard",
        hint="Ask for more stages, leave pipeline.stages on auto, or set placement.offload to disk.",
    )


def _choose_transport(recipe: Recipe, size: int, compute: float) -> Literal["zarr", "direct"]:
    """Return how an edge's microbatches of `size` bytes travel, whose stage computes for `compute` seconds."""
    wanted = recipe.pipeline.activations.transport
    if wanted != "auto":
        return wanted
    return "zarr" if ZARR_SECONDS + size / ZARR_BYTES_PER_SECOND <= ZARR_BUDGET * compute else "direct"
