"""Rows of a stage's first microbatch, computed once more alone, on devices whose kernels are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daskinfer.errors import JobFailed
from daskinfer.models.execution.device_check import DeviceCheck
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.spec.outline import InputArray, TensorSpec
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import Array, cut_checkpoint, request_of, run_through
from daskinfer.testing.models.tinymodels import make_tiny

INPUTS = (
    InputArray(name="input_ids", dtype="int64", shape=(None,), bound=50),
    InputArray(name="attention_mask", dtype="int64", shape=(None,)),
)
STATES = (TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0), (8, 0, 0, 0))),)
# A table of positions from the end: what a row alone gets of it is no part of what the microbatch gets.
RELATIVE = TensorSpec(dtype="float32", dims=((0, 0, 2, 0), (8, 0, 0, 0)))


def make_batch(lengths: list[int]) -> dict[str, Array]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(7).integers(5, 50, mask.shape)
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask.astype(np.int64)}


def right(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
    mask: Array = inputs["attention_mask"][..., None].astype(np.float32)
    states = np.sin(inputs["input_ids"])[..., None] * np.arange(1, 9, dtype=np.float32) * mask
    return [np.asarray(states + states.sum(1, keepdims=True), np.float32)]


def of_neighbours(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
    (states,) = right(inputs, received)
    return [states + states.mean(0, keepdims=True)]


def of_padding(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
    (states,) = right(inputs, received)
    return [states * np.float32(states.shape[1])]


def of_chance(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
    (states,) = right(inputs, received)
    return [np.asarray(states * np.random.default_rng().uniform(0.5, 1.5, states.shape), np.float32)]


def of_a_router(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
    """One token of each row goes to another expert when the row is alone, as it may where two scores are equal."""
    (states,) = right(inputs, received)
    if len(states) == 1:
        states[:, 0] *= 2
    return [states]


def compare(run: Callable[..., list[Array]], lengths: list[int], received: tuple[TensorSpec, ...] = ()) -> bool:
    batch = make_batch(lengths)
    given = tuple(np.ones(spec.shape(len(lengths), max(lengths)), np.float32) for spec in received)
    return DeviceCheck(INPUTS, received, STATES).compare(run, batch, given, run(batch, given), "device X")


@pytest.mark.parametrize("run", [right, of_a_router])
def test_rows_that_are_computed_alike_pass(run: Callable[..., list[Array]]) -> None:
    assert compare(run, [9, 3, 5])


@pytest.mark.parametrize("run", [of_neighbours, of_padding, of_chance])
def test_results_of_more_than_the_row_are_refused(run: Callable[..., list[Array]]) -> None:
    with pytest.raises(JobFailed, match="device X computes rows otherwise alone"):
        compare(run, [9, 3, 5])


def test_one_row_says_nothing() -> None:
    assert not compare(of_chance, [9])


def test_rows_keep_their_padding_where_what_is_received_cannot_be_cut() -> None:
    lengths = []

    def run(inputs: Mapping[str, Array], received: tuple[Array, ...]) -> list[Array]:
        lengths.append((inputs["input_ids"].shape[1], len(received[0])))
        return right(inputs, received)

    assert compare(run, [9, 3, 5], (RELATIVE,))
    assert lengths == [(9, 18), (9, 18)]


def test_a_stage_that_relates_rows_to_each_other_is_left_alone() -> None:
    both = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 1, 0, 0)))
    batch = make_batch([4, 2])
    check = DeviceCheck(INPUTS, (), (both,))
    assert not check.compare(lambda *_: [np.random.default_rng().random((2, 2))], batch, (), [np.eye(2)], "device X")


@pytest.mark.parametrize(("architecture", "stages"), [("BertModel", 3), ("LlamaForCausalLM", 1)])
def test_an_attention_kernel_that_leaves_out_the_mask_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, stages: int
) -> None:
    registry = Registry(str(tmp_path / "registry"))
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", architecture)))
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny"), stages)
    batch = make_batch([12, 9, 3])
    run_through(loaded, batch)
    kernel = torch.nn.functional.scaled_dot_product_attention

    def without_mask(*args: Any, **options: Any) -> torch.Tensor:
        return kernel(*args, **(options | {"attn_mask": None, "is_causal": False}))

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_mask)
    # What was compared before is not compared again.
    run_through(loaded, batch)
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny"), stages)
    with pytest.raises(JobFailed, match="cpu computes rows otherwise alone"):
        run_through(loaded, batch)
