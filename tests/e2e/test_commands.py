"""The other commands, typed as a user would, for people and for programs."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from jsonschema import Draft202012Validator

from daskinfer import api
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e import command
from tests.e2e.conftest import Bench, data_bytes, read_output, run, write_rows

pytestmark = pytest.mark.late


def call(*words: str, cwd: Path, code: int = 0) -> tuple[str, str]:
    """Run a command; return stdout and stderr."""
    ended = command.call(*words, cwd=cwd)
    assert ended.code == code, ended.err
    return ended.out, ended.err


def parsed(*words: str, cwd: Path, code: int = 0) -> dict[str, Any]:
    """Run a command with --json; return its one object."""
    found = json.loads(call(*words, "--json", cwd=cwd, code=code)[0])
    assert isinstance(found, dict)
    return found


def test_validate_says_what_a_run_would_meet(bench: Bench, scheduler: str) -> None:
    recipe = bench.write_recipe(model__options__max_length=1000, model__kernels="torch")
    out, err = call("validate", "recipe.yaml", cwd=bench.folder)
    assert out.splitlines() == [
        "input: 300 rows of jsonl in 1 file(s), 5 partitions",
        f"checkpoint: tiny@prod is {api.checkpoint('tiny@prod', str(bench.folder / 'work/registry')).resolution.snapshot}",
        "plan: 4 layers in 2 stage(s) on 2 worker(s), float32, texts of at most 64 tokens",
        "microbatches: rows of any length together",
        "precision: float32 as the recipe says",
        "linear layers: torch, as the recipe says",
        "length: texts have at most 64 tokens by model_max_length of tokenizer_config.json, not 1,000",
        "output: embedding float32[32], id",
        "recipe.yaml is valid",
    ]
    assert err == ""
    found = parsed("validate", "recipe.yaml", cwd=bench.folder)
    assert (found["valid"], found["checks"]) == (True, out.splitlines()[:8])
    refused = {
        "output.url=out.tiff": 2,
        "model.options.max_length=1": 2,
        "input.url=nothing": 2,
        "pipeline.stages=9": 3,
        "placement.requires={TPU: 1}": 3,
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = pool.map(
            lambda case: parsed("validate", "recipe.yaml", "--set", case[0], cwd=bench.folder, code=case[1]),
            refused.items(),
        )
    assert [(end["code"], bool(end["error"] and end["hint"])) for end in ends] == [
        (code, True) for code in refused.values()
    ]
    assert sorted(path.name for path in bench.folder.iterdir()) == ["in.jsonl", recipe.name, "work"]
    assert not (bench.folder / "work/jobs").exists()
    report = run(bench.recipe(), scheduler)
    bench.write_recipe()
    assert f"job: {report.job} is done already\n" in call("validate", "recipe.yaml", cwd=bench.folder)[0]
    _, err = call("validate", "recipe.yaml", "--set", "model.options.pooling=cls", cwd=bench.folder, code=2)
    assert f"belongs to job {report.job}; the recipe (model.options.pooling) has changed since" in err


def test_the_schema_tells_good_recipes_from_bad(bench: Bench) -> None:
    recipe = json.loads(bench.write_recipe().read_text())
    schema = json.loads(call("schema", cwd=bench.folder)[0])
    Draft202012Validator.check_schema(schema)
    check = Draft202012Validator(schema)
    assert check.is_valid(recipe)
    assert not check.is_valid(recipe | {"pipelin": {}})
    assert not check.is_valid(recipe | {"input": {}})


def test_a_run_and_what_tells_of_it(bench: Bench, scheduler: str) -> None:
    write_rows(bench.folder / "in.jsonl", 40)
    bench.write_recipe(cluster__address=scheduler, placement__requires={"TWO": 1})
    assert call("jobs", cwd=bench.folder) == ("no jobs in ./work\n", "")
    assert parsed("jobs", cwd=bench.folder)["jobs"] == []
    out, err = call("run", "recipe.yaml", cwd=bench.folder)
    assert out.startswith("done  tiny  All 40 rows are in the output, computed on one snapshot.\n")
    assert "rows 40 in = 40 out + 0 quarantined" in " ".join(out.split())
    began, ended = err.splitlines()
    job = began.removeprefix("tiny: job ").removesuffix(", 40 rows")
    assert ended.startswith("tiny: done in ")
    again = parsed("run", "recipe.yaml", cwd=bench.folder)
    assert (again["already_done"], again["job"], again["rows_out"], again["code"]) == (True, job, 40, 0)

    assert f"{job}   done    40 of 40" in call("jobs", cwd=bench.folder)[0]
    (listed,) = parsed("jobs", cwd=bench.folder)["jobs"]
    status = parsed("status", job[:7], cwd=bench.folder)
    assert (listed["job"], status["job"], status["state"]) == (job, job, "done")
    out, _ = call("status", job, cwd=bench.folder)
    assert out.startswith("done  tiny\n")
    assert "40 of 40 (100%), 0 quarantined" in out
    _, err = call("status", f"{job}x", cwd=bench.folder, code=2)
    assert err == f"error: no job {job}x in {bench.folder}/work\nhint: Did you mean {job}?\n"
    assert parsed("report", "nothing", cwd=bench.folder, code=2)["hint"] == "List them: daskinfer jobs"

    page = bench.folder / "page.html"
    assert call("report", job, "--html", "page.html", cwd=bench.folder) == ("", "wrote page.html\n")
    assert job in page.read_text()
    assert "<script src" not in page.read_text()
    report = parsed("report", job, cwd=bench.folder)
    assert (report["rows_in"], report["rows_out"], report["verdict"]) == (40, 40, "done")
    assert report["command"].endswith("run recipe.yaml")
    _, err = call("report", job, "--html", "no/page.html", cwd=bench.folder, code=1)
    assert "no/page.html: cannot be written: No such file or directory" in err


@pytest.mark.late
def test_checkpoints_from_publish_to_alias(tmp_path: Path, tiny_model: Path) -> None:
    assert "no checkpoints in ./work/registry; publish one" in call("checkpoint", "list", cwd=tmp_path)[0]
    first = parsed("checkpoint", "publish", "tiny", str(tiny_model), "--alias", "prod", cwd=tmp_path)
    assert parsed("checkpoint", "publish", "tiny", str(tiny_model), cwd=tmp_path)["snapshot"] == first["snapshot"]
    other = make_tiny_bert(tmp_path / "other", layers=2, seed=1)
    out, _ = call("checkpoint", "publish", "tiny", str(other), "--alias", "next", cwd=tmp_path)
    assert out.startswith("published tiny v2 sha256:")
    assert out.endswith(", tiny@next points at it\n")
    (listed,) = parsed("checkpoint", "list", cwd=tmp_path)["checkpoints"]
    assert (listed["name"], listed["versions"], listed["latest"]["number"]) == ("tiny", 2, 2)
    out, _ = call("checkpoint", "list", cwd=tmp_path)
    assert "next -> v2, prod -> v1" in out
    out, _ = call("checkpoint", "alias", "tiny", "prod", "next", cwd=tmp_path)
    assert out.startswith("tiny@prod is now tiny v2 sha256:")
    shown = parsed("checkpoint", "show", "tiny@prod", cwd=tmp_path)
    assert (shown["resolution"]["version"], shown["architecture"]) == (2, "BertModel")
    out, _ = call("checkpoint", "show", "tiny@v1", cwd=tmp_path)
    assert first["snapshot"] in out
    refused = (
        (("show", "tiny@prd"), "Did you mean prod?"),
        (("alias", "tiny", "prod", "v7"), "It has v1"),
        (("publish", "tiny", "nowhere"), "nowhere: no such directory"),
        (("publish", "a name", str(tiny_model)), "'a name' is not allowed as checkpoint name"),
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = pool.map(lambda case: call("checkpoint", *case[0], cwd=tmp_path, code=2), refused)
    for (_, said), (_, err) in zip(refused, ends, strict=True):
        assert said in err


@pytest.mark.late
@pytest.mark.s3
def test_everything_on_an_object_store(bench: Bench, scheduler: str, s3_url: str) -> None:
    store = f"{s3_url}/commands"
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.put_file(str(bench.folder / "in.jsonl"), f"{store}/in.jsonl")
    call(
        "checkpoint",
        "publish",
        "tiny",
        str(bench.model),
        "--alias",
        "prod",
        "--registry",
        f"{store}/r",
        cwd=bench.folder,
    )
    bench.write_recipe(
        workspace=f"{store}/work",
        model__registry=f"{store}/r",
        input__url=f"{store}/in.jsonl",
        output__url=f"{store}/out.zarr",
        pipeline__activations={"transport": "zarr"},
    )
    found = parsed("run", "recipe.yaml", cwd=bench.folder)
    assert (found["rows_out"], found["code"]) == (300, 0)
    assert parsed("status", found["job"], "--workspace", f"{store}/work", cwd=bench.folder)["state"] == "done"
    files.get(f"{store}/out.zarr/", f"{bench.folder}/fetched.zarr/", recursive=True)
    run(bench.recipe(), scheduler)
    assert data_bytes(bench.folder / "fetched.zarr") == data_bytes(bench.folder / "out.zarr")
    assert len(read_output(bench.folder / "fetched.zarr")["embedding"]) == 300
