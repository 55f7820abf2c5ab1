"""Modules of the user's own through the workers and through the command: results, and code that is not what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from numpy.typing import NDArray

from daskinfer import api
from daskinfer.errors import CheckpointError
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.ownmodels import make_own, make_sequential, make_unet
from tests.e2e.command import Ended, call
from tests.e2e.conftest import SIZES, run
from tests.e2e.outputs import read_columns, read_microbatches

pytestmark = pytest.mark.late

ROWS = 48
BUILDERS = {"own": make_own, "sequential": make_sequential, "unet": make_unet}
CODE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three modules published, and rows for them."""
    folder = tmp_path_factory.mktemp("own")
    for name in BUILDERS:
        entry = f"daskinfer.testing.models.ownmodels:make_{name}"
        api.publish(name, registry=str(folder / "work/registry"), entry=entry, alias="prod")
    source = np.random.default_rng(0)
    write_features(folder / "features.parquet", source.standard_normal((ROWS, 8), dtype=np.float32))
    images = source.standard_normal((ROWS, 3, 16, 16), dtype=np.float32)
    group = zarr.open_group(folder / "images.zarr", mode="w")
    group.create_array("picture", data=images, chunks=(24, 3, 16, 16))
    return folder


def write_features(path: Path, values: NDArray[np.float32]) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    pq.write_table(pa.table({"features": column, "id": range(len(values))}), path)


def make_recipe(folder: Path, model: str, url: str, columns: dict[str, str], output: str, stages: int) -> Recipe:
    return Recipe.model_validate(
        {
            "daskinfer": 1,
            "name": model,
            "workspace": str(folder / "work"),
            "model": {"checkpoint": f"{model}@prod", "task": "forward"},
            "input": {"url": str(folder / url), "columns": columns, "partition_rows": 24},
            "output": {"url": str(folder / output)},
            "pipeline": {"stages": stages, "microbatch_tokens": 10},
        }
    )


def read_input(folder: Path, url: str) -> NDArray[np.float32]:
    if url.endswith(".zarr"):
        return np.asarray(zarr.open_array(folder / url / "picture", mode="r")[:])
    return np.array(pq.read_table(folder / url)["features"].to_pylist(), np.float32)


@pytest.mark.parametrize(
    ("name", "url", "columns"),
    [
        ("own", "features.parquet", {"features": "features"}),
        ("sequential", "features.parquet", {"anything": "features"}),
        ("unet", "images.zarr", {"image": "picture"}),
    ],
)
def test_staged_equals_the_plain_module(
    shop: Path, scheduler: str, name: str, url: str, columns: dict[str, str]
) -> None:
    model, values = BUILDERS[name](), torch.as_tensor(read_input(shop, url))
    torch.set_num_threads(1)
    for stages, output in ((1, f"{name}.parquet"), (3, f"{name}.zarr")):
        recipe = make_recipe(shop, name, url, columns, output, stages)
        report = run(recipe, scheduler, workers=stages)
        assert (report.rows_out, len(report.stages)) == (ROWS, stages)
        sizes = [rows for partition in read_microbatches(recipe, report) for rows, _ in partition]
        assert len(sizes) > 3
        with torch.inference_mode():
            results: list[Any] = [model(part) for part in torch.split(values, sizes)]
        parts = [result if isinstance(result, dict) else {"output": result} for result in results]
        written = read_columns(shop / output)
        for key in parts[0]:
            assert np.array_equal(written[key].reshape(written[key].shape), torch.cat([part[key] for part in parts])), (
                key
            )


def test_another_task_than_forward_is_refused(shop: Path, scheduler: str) -> None:
    recipe = make_recipe(shop, "own", "features.parquet", {"features": "features"}, "none.zarr", 1)
    model = recipe.model.model_copy(update={"task": "embed"})
    with pytest.raises(CheckpointError, match="is a model of your own") as caught:
        run(recipe.model_copy(update={"model": model}), scheduler)
    assert "forward" in str(caught.value.hint)


def test_an_entry_that_is_not_the_checkpoints_is_refused(shop: Path, scheduler: str) -> None:
    recipe = make_recipe(shop, "own", "features.parquet", {"features": "features"}, "none.zarr", 1)
    model = recipe.model.model_copy(update={"entry": "daskinfer.testing.models.ownmodels:make_unet"})
    with pytest.raises(
        CheckpointError, match=r"own@prod was published with daskinfer.testing.models.ownmodels:make_own"
    ):
        run(recipe.model_copy(update={"model": model}), scheduler)


# Through the command, with code that lies in the user's folder


def start(folder: Path, **changes: Any) -> Ended:
    recipe = make_recipe(folder, "mine", "features.parquet", {"x": "features"}, "mine.zarr", 2)
    document = recipe.model_dump(mode="json", exclude_none=True) | changes
    (folder / "recipe.yaml").write_text(json.dumps(document))
    return call("run", "recipe.yaml", "--json", cwd=folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mymodels.py").write_text(CODE)
    write_features(folder / "features.parquet", np.ones((ROWS, 8), np.float32))
    publish = ["checkpoint", "publish", "mine", "--entry", "mymodels:build", "--alias", "prod"]
    assert call(*publish, cwd=folder).code == 0
    return folder


@pytest.fixture
def mine(published: Path, tmp_path: Path) -> Path:
    """A user's folder with a module and rows, the module published from it."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_code_of_the_users_folder(mine: Path) -> None:
    ended = start(mine)
    assert ended.code == 0, ended.err
    assert ended.json["rows_out"] == ROWS
    # Equal rows in microbatches of two sizes: some CPUs round their last bits differently.
    found = read_columns(mine / "mine.zarr")["output"]
    assert np.allclose(found, found[0], rtol=0, atol=1e-6)


def test_code_that_has_changed(mine: Path) -> None:
    (mine / "mymodels.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    ended = start(mine)
    assert ended.code == 2
    assert "mymodels:build: its source has changed since it was published" in ended.err
    assert "Publish the model again" in ended.err
    assert not (mine / "mine.zarr").exists()
    assert not (mine / "work/jobs").exists()


def test_a_worker_without_the_code(mine: Path, scheduler: str) -> None:
    ended = start(mine, cluster={"address": scheduler}, placement={"requires": {SIZES[1]: 1}})
    assert ended.code == 2, ended.err
    assert "could not be loaded on tcp://" in ended.err
    assert "there is no Python file for mymodels" in ended.err
    assert "on every machine" in ended.err
