"""`model.signed_by`: nothing runs on a snapshot that its keys have not signed, neither at first nor on a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskinfer import api
from daskinfer.errors import CheckpointError
from tests.e2e.command import call
from tests.e2e.conftest import Bench, run
from tests.e2e.faults import commits, interrupt


@pytest.fixture
def key(tmp_path: Path) -> str:
    api.keygen(str(tmp_path / "release.key"))
    return str(tmp_path / "release.key")


def test_what_is_not_signed_does_not_run(bench: Bench, key: str, scheduler: str) -> None:
    registry = str(bench.folder / "work/registry")
    bench.write_recipe(model__signed_by=["release.key.pub"])  # relative to where the command runs
    told = call("validate", "recipe.yaml", cwd=bench.folder)
    assert told.code == 2
    assert "is not signed by release.key.pub" in told.err
    assert "daskinfer checkpoint sign NAME@sha256:" in told.err
    recipe = bench.recipe(model__signed_by=[f"{key}.pub"], input__partition_rows=16)
    with pytest.raises(CheckpointError, match="its signatures: none"):
        run(recipe, scheduler)
    assert not (bench.folder / "work/jobs").exists()

    api.sign("tiny@prod", key, registry=registry)
    assert api.validate(recipe)
    interrupt(recipe, scheduler)
    done = commits(bench.folder / "out.zarr")
    # Whoever resumes may ask for more; it is the same job, and it is asked again.
    api.keygen(str(bench.folder / "second.key"))
    strict = bench.recipe(
        model__signed_by=[f"{key}.pub", str(bench.folder / "second.key.pub")], input__partition_rows=16
    )
    with pytest.raises(CheckpointError, match=r"is not signed by .*second.key.pub"):
        run(strict, scheduler)
    assert commits(bench.folder / "out.zarr") == done
    api.sign("tiny@prod", str(bench.folder / "second.key"), registry=registry)
    report = run(strict, scheduler)
    assert (report.verdict, report.partitions_resumed) == ("done", len(done))
    assert strict.digest == recipe.digest == bench.recipe(input__partition_rows=16).digest
