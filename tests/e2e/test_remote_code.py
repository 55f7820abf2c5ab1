"""Code that comes with a checkpoint, through the command: refused, trusted, and kept with the snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from daskinfer import api
from daskinfer.models.preprocessing.tokenizer import make_tokenizer
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.codedmodels import CODE, copying_to, make_coded
from daskinfer.testing.models.reference import run_unsplit
from tests.e2e.command import call, start
from tests.e2e.conftest import Bench, read_output, run, write_rows
from tests.e2e.faults import interrupt

pytestmark = pytest.mark.late

ROWS = 480


@pytest.fixture
def coded(tmp_path: Path) -> Bench:
    """A folder with a checkpoint that brings code, and rows for it."""
    write_rows(tmp_path / "in.jsonl", ROWS)
    return Bench(tmp_path, make_coded(tmp_path / "coded"))


def recipe_of(bench: Bench, name: str = "out.zarr", trust: bool = True) -> Recipe:
    model = {"checkpoint": str(bench.model), "options": {"max_length": 48}, "trust_code": trust}
    return bench.recipe(name, model=model, input__partition_rows=16)


def leave_a_trace(bench: Bench) -> Path:
    """Make the checkpoint's code create a file when it is run."""
    code = bench.model / "configuration_tiny.py"
    code.write_text(f"open({str(bench.folder / 'trace')!r}, 'w').close()\n{code.read_text()}")
    return bench.folder / "trace"


def expected(bench: Bench) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Every row alone through transformers' own way of running such code."""
    files = {path.name: path.read_bytes() for path in bench.model.glob("*.json")}
    texts = [json.loads(line)["text"] for line in (bench.folder / "in.jsonl").read_text().splitlines()]
    rows = make_tokenizer(files, 48).encode(texts)
    alone = [(row[None, :], np.array([len(row)], np.int32)) for row in rows]
    with copying_to(bench.folder / "modules"):
        return np.concatenate(run_unsplit(bench.model, alone, trust_code=True))


def test_code_runs_where_it_is_trusted_and_nowhere_else(coded: Bench, scheduler: str) -> None:
    trace = leave_a_trace(coded)
    recipe = recipe_of(coded, trust=False).model_dump(mode="json", exclude_none=True)
    recipe |= {"cluster": {"address": scheduler}, "placement": {"requires": {"TWO": 1}}}
    (coded.folder / "recipe.yaml").write_text(json.dumps(recipe))
    where = ("--registry", "work/registry")

    refused = call("checkpoint", "publish", "coded", "coded", *where, cwd=coded.folder)
    assert refused.code == 2 and "auto_map" in refused.err and "--trust-code" in refused.err
    assert not trace.exists()

    published = call("checkpoint", "publish", "coded", "coded", "--trust-code", "--json", *where, cwd=coded.folder)
    assert published.code == 0, published.err
    trace.unlink()
    refused = start(coded, model__checkpoint="coded@v1")
    assert refused.code == 2 and not trace.exists() and not (coded.folder / "out.zarr").exists()
    snapshot = published.json["snapshot"]
    assert all(word in refused.err for word in (snapshot[7:19], *CODE, "model.trust_code: true"))

    done = start(coded, model__checkpoint="coded@v1", model__trust_code=True)
    assert done.code == 0, done.err
    assert (done.json["snapshot"], done.json["rows_out"]) == (snapshot, ROWS)
    assert trace.exists()
    embedding = read_output(coded.folder / "out.zarr")["embedding"]
    assert np.abs(embedding - expected(coded)).max() < 1e-5


def test_a_job_goes_on_with_the_code_that_it_began_with(coded: Bench, scheduler: str) -> None:
    run(recipe_of(coded, "calm.zarr"), scheduler)
    interrupt(recipe_of(coded), scheduler)
    code = coded.model / "blocks_tiny.py"
    code.write_text(code.read_text().replace("tanh", "sigmoid"))
    report = run(recipe_of(coded), scheduler)
    assert report.partitions_resumed > 0
    calm, resumed, changed = (coded.folder / name for name in ("calm.zarr", "out.zarr", "changed.zarr"))
    assert np.array_equal(read_output(resumed)["embedding"], read_output(calm)["embedding"])
    fresh = run(recipe_of(coded, changed.name), scheduler)
    assert fresh.snapshot != report.snapshot
    assert not np.allclose(read_output(changed)["embedding"], read_output(calm)["embedding"])
    detail = api.checkpoint("coded@v1", str(coded.folder / "work/registry"))
    assert detail.resolution.snapshot == report.snapshot and set(CODE) <= set(detail.files)
