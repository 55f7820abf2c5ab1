from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from daskinfer.graphs.context import JobContext, forget_driver, forget_job, open_context
from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.jobs.job_resolution import open_job
from daskinfer.spec.plan import WorkerShape
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.tinymodels import make_tiny

WORKERS = [WorkerShape(address=name, threads=1, memory=0, resources={"GPU": 1}) for name in "ab"]


def begin(folder: Path, name: str) -> JobContext:
    """Begin a job that gives a model token ids of this name."""
    recipe = Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": name,
            "workspace": str(folder / "work"),
            "model": {"checkpoint": str(folder / "bert"), "task": "forward"},
            "input": {"url": str(folder / "in.zarr"), "columns": {"input_ids": name, "attention_mask": f"{name}_mask"}},
            "output": {"url": str(folder / f"{name}.zarr")},
            "pipeline": {"stages": 2},
        }
    )
    record = open_job(recipe, WORKERS, fresh=False).record
    return open_context(JobHandle(recipe.workspace, record.job, 0, record.first_pin))


def test_shards_are_shared_only_by_jobs_that_ask_the_same(tmp_path: Path) -> None:
    make_tiny(tmp_path / "bert", "BertModel")
    group = zarr.open_group(tmp_path / "in.zarr", mode="w")
    lengths = {"short": 5, "long": 9}
    for name, length in lengths.items():
        group.create_array(name, data=np.full((4, length), 7))
        group.create_array(f"{name}_mask", data=np.tri(4, length, 1, dtype=np.int64))
    contexts = {name: begin(tmp_path, name) for name in lengths}
    loaded = {name: [context.load(stage) for stage in (0, 1)] for name, context in contexts.items()}
    for name, length in lengths.items():
        first, second = loaded[name]
        assert contexts[name].load(0) is first
        inputs = {"input_ids": np.full((4, length), 7), "attention_mask": np.tri(4, length, 1, dtype=np.int64)}
        received, _ = first.stage.run(inputs)
        assert isinstance(received, tuple)
        results, _ = second.stage.run(inputs, received)
        assert isinstance(results, dict)
        assert results["last_hidden_state"].shape == (4, length, 32)
    for context in contexts.values():
        forget_job(context.handle)


def test_what_a_late_task_of_an_earlier_driver_leaves_behind_is_no_later_drivers(tmp_path: Path) -> None:
    make_tiny(tmp_path / "bert", "BertModel")
    group = zarr.open_group(tmp_path / "in.zarr", mode="w")
    for name in ("short", "short_mask"):
        group.create_array(name, data=np.ones((4, 5), np.int64))
    early = begin(tmp_path, "short")
    assert early.sink is early.sink
    later = open_context(replace(early.handle, epoch=1))
    assert later is not early and later.sink is not early.sink
    assert open_context(replace(early.handle, epoch=1)) is later
    forget_driver(early.handle.job, "")
