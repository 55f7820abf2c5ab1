"""A tiny model in a registry, rows to run it on, and warm workers that every quiet test shares."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Nanny, Scheduler, SpecCluster
from numpy.typing import NDArray

from daskinfer import api
from daskinfer.knobs import PROGRESS_SECONDS
from daskinfer.runtime.cluster.forking import fork_workers
from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.tinymodels import make_tiny_bert

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "in",
    "park",
    "with",
    "ball",
    "over",
    "hill",
    "near",
    "house",
    "by",
    "sea",
]
# Worker n of the shared cluster declares the tags of all sizes above n: {THREE: 1} finds exactly three workers.
SIZES = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX")


@dataclass(frozen=True)
class Bench:
    """A folder with a registry, an input and a recipe."""

    folder: Path
    model: Path

    def recipe(self, name: str = "out.zarr", **changes: Any) -> Recipe:
        """Return the recipe with an output of this name; `pipeline__stages=2` changes a nested key."""
        document: dict[str, Any] = {
            "daskinfer": 1,
            "name": "tiny",
            "workspace": str(self.folder / "work"),
            "model": {"checkpoint": "tiny@prod", "options": {"max_length": 48}},
            "input": {"url": str(self.folder / "in.jsonl"), "partition_rows": 64},
            "output": {"url": str(self.folder / name), "keep": ["id"]},
            "pipeline": {"stages": 2, "microbatch_tokens": 512},
        }
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = document
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        return Recipe.model_validate(document)

    def write_recipe(self, **changes: Any) -> Path:
        """Write the recipe as a file and return its path."""
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(self.recipe(**changes).model_dump(mode="json", exclude_none=True)))
        return path


def make_bench(folder: Path, model: Path, rows: int) -> Bench:
    """Publish the model as `tiny@prod` in a folder and write rows for it."""
    api.publish("tiny", str(model), registry=str(folder / "work/registry"), alias="prod")
    write_rows(folder / "in.jsonl", rows)
    return Bench(folder, model)


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Write rows of one to forty words with ids."""
    source = random.Random(seed)
    rows = ({"id": f"row-{n}", "text": " ".join(source.choices(WORDS, k=source.randint(1, 40)))} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "tiny", layers=4)


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    """A fresh folder with `tiny@prod` published and 300 rows."""
    return make_bench(tmp_path, tiny_model, 300)


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """The address of six warm workers."""
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1} | {size: 1 for rank, size in enumerate(SIZES) if rank >= number},
                "memory_limit": 0,
                # No GPU: these tests compare bits with the CPU's.
                "env": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
            },
        }
        for number in range(len(SIZES))
    }
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with (
        dask.config.set(fork_workers()),
        SpecCluster(workers=workers, scheduler={"cls": Scheduler, "options": options}, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture
def warm(bench: Bench, scheduler: str) -> Bench:
    """The bench with its recipe written down for two of the warm workers."""
    bench.write_recipe(cluster__address=scheduler, placement__requires={"TWO": 1})
    return bench


@pytest.fixture
def every_event_is_told() -> Iterator[None]:
    """Whoever watches a run hears of every event, and so may end it after any."""
    with PROGRESS_SECONDS.override(0.0):
        yield


def run(recipe: Recipe, scheduler: str, workers: int = 2, **options: Any) -> Report:
    """Run a recipe on exactly so many of the shared workers."""
    changes = {
        "cluster": recipe.cluster.model_copy(update={"address": scheduler, "local": None}),
        "placement": recipe.placement.model_copy(update={"requires": {SIZES[workers - 1]: 1}}),
    }
    return api.run(recipe.model_copy(update=changes), **options)


def daskinfer(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command a user would type."""
    command = [sys.executable, "-m", "daskinfer", *words]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_output(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of a Zarr output."""
    group = zarr.open_group(str(path), mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def data_bytes(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file of an output but the records, which name jobs and times."""
    files: Sequence[Path] = sorted(file for file in path.rglob("*") if file.is_file())
    skipped = ("_daskinfer", "_MANIFEST.json", "zarr.json")
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in files
        if not any(part in skipped for part in file.relative_to(path).parts)
    }
