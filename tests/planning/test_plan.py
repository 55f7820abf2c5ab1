from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskinfer.errors import PlanError
from daskinfer.planning.placement import count_replicas
from daskinfer.planning.plan import make_plan, place_plan
from daskinfer.planning.stages import choose_starts, cut_layers, make_stages
from daskinfer.spec.outline import TensorSpec
from daskinfer.spec.plan import UNKNOWN_DEVICE, LayerProfile, ModelProfile, Numerics, Plan, WorkerShape
from daskinfer.spec.recipe.schema import Recipe

NUMERICS = Numerics(dtype="float32", attention="sdpa", threads=1, torch="2", transformers="5", tokenizers="0")


HIDDEN = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0), (384, 0, 0, 0)))


def make_profile(layers: int = 6, parameter_bytes: int = 1000, uncut: str | None = None) -> ModelProfile:
    own: list[tuple[str, ...]] = [(f"layer.{index}.weight",) for index in range(layers)]
    own[0] = ("embeddings.weight", *own[0])
    return ModelProfile(
        architecture="BertModel",
        max_length=512,
        layers=tuple(
            LayerProfile(name=f"layer.{index}", tensors=tensors, flops=(3_500_000, 0), cut=(HIDDEN,) if index else ())
            for index, tensors in enumerate(own)
        ),
        sizes={"embeddings.weight": 5000, **{f"layer.{index}.weight": parameter_bytes for index in range(layers)}},
        uncut=uncut,
    )


def make_workers(count: int, memory: int = 0, **resources: float) -> list[WorkerShape]:
    return [
        WorkerShape(address=f"w{index}", threads=1, memory=memory, resources=resources or {"GPU": 1})
        for index in range(count)
    ]


def make_recipe(**pipeline: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": "job",
            "model": {"checkpoint": "m@prod"},
            "input": {"url": "in.jsonl"},
            "output": {"url": "out.zarr"},
            "pipeline": pipeline,
        }
    )


def plan_for(workers: list[WorkerShape], layers: int = 6, **pipeline: Any) -> Plan:
    return make_plan(make_recipe(**pipeline), make_profile(layers), workers, NUMERICS)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 8))
def test_cut_is_the_best_there_is(work: list[int], stages: int) -> None:
    stages = min(stages, len(work))

    def heaviest(starts: tuple[int, ...]) -> int:
        return max(sum(work[a:b]) for a, b in itertools.pairwise((*starts, len(work))))

    every = [(0, *rest) for rest in itertools.combinations(range(1, len(work)), stages - 1)]
    assert heaviest(cut_layers(work, stages)) == min(map(heaviest, every))


def test_shards_add_up_to_the_model() -> None:
    profile = make_profile()
    stages = make_stages(profile, (0, 2, 4), 128)
    assert [stage.parameter_bytes for stage in stages] == [7000, 2000, 2000]
    assert sum(stage.share for stage in stages) == pytest.approx(1)


def test_a_tensor_that_several_layers_need_counts_once_a_stage() -> None:
    profile = make_profile()
    last = profile.layers[-1]
    tied = last.model_copy(update={"tensors": (*last.tensors, "embeddings.weight")})
    profile = profile.model_copy(update={"layers": (*profile.layers[:-1], tied), "shared": ("layer.0.weight",)})
    assert profile.stage_bytes(0, 6) == 11_000
    assert [stage.parameter_bytes for stage in make_stages(profile, (0, 5), 128)] == [10_000, 7_000]


def test_stages_can_be_named() -> None:
    by_number = plan_for(make_workers(3), stages=[2, 4])
    assert plan_for(make_workers(3), stages=["layer.2", "layer.4"]).stages == by_number.stages
    assert by_number.edges == ((HIDDEN,), (HIDDEN,))


def test_auto_takes_the_fewest_stages_that_fit() -> None:
    assert len(plan_for(make_workers(4)).stages) == 1
    tight = make_workers(4, memory=12_000)
    assert len(plan_for(tight).stages) == 2  # 8,400 bytes for a shard: 5,000 for the embeddings, 1,000 a layer


def test_more_workers_than_stages_become_replicas() -> None:
    assert plan_for(make_workers(4), stages=2).replicas == (2, 2)
    assert plan_for(make_workers(5), stages=2).replicas in {(3, 2), (2, 3)}


def test_resume_on_other_workers_keeps_what_decides_bits() -> None:
    plan = plan_for(make_workers(2), stages=2)
    placed = place_plan(plan, make_recipe(stages=2), make_workers(6))
    assert placed.digest == plan.digest
    assert placed.replicas == (3, 3)
    assert placed.window > plan.window


def test_window_is_capped_by_memory() -> None:
    recipe = make_recipe(stages=2, microbatch_tokens=4096)
    chunk = 4096 * 384 * 4
    plan = make_plan(recipe, make_profile(), make_workers(2, memory=8 * chunk), NUMERICS)
    assert plan.window == 2


def test_transport_is_zarr_where_it_costs_little() -> None:
    assert plan_for(make_workers(2), layers=12, stages=2).transports == ("zarr",)
    assert plan_for(make_workers(2), layers=2, stages=2, microbatch_tokens=16).transports == ("direct",)
    wanted = {"transport": "direct"}
    assert plan_for(make_workers(2), layers=12, stages=2, activations=wanted).transports == ("direct",)


@pytest.mark.parametrize(
    ("workers", "pipeline", "message"),
    [
        (make_workers(2, FPGA=1), {}, "asks for {GPU: 1}, but none of the 2 workers declares it (declared: FPGA: 1)"),
        (make_workers(2), {"stages": 3}, "3 stages need 3 workers"),
        (make_workers(9), {"stages": 9}, "has only 6 layers"),
        (make_workers(3), {"stages": [4, 2]}, "not rising layer numbers"),
        (make_workers(3), {"stages": [6]}, "not rising layer numbers"),
        (make_workers(3), {"stages": ["layer.9"]}, "has no layer 'layer.9'"),
        (make_workers(2, memory=100), {}, "the smallest shard"),
        (make_workers(2, memory=100), {"stages": 2}, "needs 8.0 KB"),
    ],
)
def test_what_cannot_fit_is_refused(workers: list[WorkerShape], pipeline: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_for(workers, **pipeline)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def offload_plan(offload: str, workers: list[WorkerShape], device: str = "cpu", **pipeline: Any) -> Plan:
    recipe = make_recipe(**pipeline)
    recipe = recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"offload": offload})})
    return make_plan(recipe, make_profile(6), workers, NUMERICS.model_copy(update={"device": device}))


def test_only_what_does_not_fit_is_offloaded() -> None:
    # Stages of 7,000, 2,000 and 2,000 bytes for memory of 4,200.
    plan = offload_plan("disk", make_workers(3, 6000), stages=3)
    assert [stage.offload for stage in plan.stages] == ["disk", "none", "none"]
    assert [stage.offload for stage in offload_plan("disk", make_workers(3, 20_000), stages=3).stages] == ["none"] * 3


def test_auto_offloads_only_where_no_cut_would_fit() -> None:
    assert [stage.offload for stage in offload_plan("disk", make_workers(3, 10_000), stages="auto").stages] == [
        "none"
    ] * 3
    plan = offload_plan("disk", make_workers(3, 6000), stages="auto")
    assert [stage.offload for stage in plan.stages] == ["disk", "none", "none"]


@pytest.mark.parametrize("stages", ["auto", 3])
def test_main_memory_helps_a_gpu_and_no_cpu(stages: Any) -> None:
    for offload in ("none", "cpu"):
        with pytest.raises(PlanError) as caught:
            offload_plan(offload, make_workers(3, 6000), stages=stages)
        assert "set placement.offload to disk" in str(caught.value.hint)
    gpu = UNKNOWN_DEVICE.model_copy(update={"kind": "cuda", "memory": 6000})
    workers = [worker.model_copy(update={"device": gpu}) for worker in make_workers(3, 10**6)]
    plan = offload_plan("cpu", workers, device="cuda", stages=stages)
    assert [stage.offload for stage in plan.stages] == ["cpu", "none", "none"]


def test_stored_bytes_are_those_of_the_snapshot() -> None:
    profile = make_profile(6).model_copy(update={"stored": {"embeddings.weight": 2500}})
    stages = make_stages(profile, (0, 1), 128)
    assert [(stage.parameter_bytes, stage.stored_bytes) for stage in stages] == [(6000, 3500), (5000, 5000)]


def test_replicas_go_to_the_slowest_stage() -> None:
    stages = make_stages(make_profile(6), (0, 5), 128)
    assert count_replicas(stages, 4) == (3, 1)


def test_explicit_boundaries() -> None:
    assert choose_starts(make_profile(), (2, 4), 0, 3, 128) == (0, 2, 4)


@pytest.mark.parametrize("stages", [2, [1]])
def test_a_model_without_cuts_runs_whole_or_not_at_all(stages: Any) -> None:
    profile = make_profile(1, uncut="its layers share their weights")
    assert len(make_plan(make_recipe(), profile, make_workers(2), NUMERICS).stages) == 1
    with pytest.raises(PlanError, match="cannot be cut: its layers share their weights"):
        make_plan(make_recipe(stages=stages), profile, make_workers(2), NUMERICS)
