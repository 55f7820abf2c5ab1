"""Canaries and shadows: partitions computed on two versions, compared in pairs, and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer import api
from daskinfer.errors import CheckpointError, Interrupted
from daskinfer.spec.comparison import GateReport
from daskinfer.spec.job.report import Report
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench, read_output, run
from tests.e2e.faults import once

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

ROWS, PARTITION = 640, 32
LENIENT = {"min_cosine": -1, "max_nan": 1, "min_rows": 1}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> Bench:
    """Two versions of one model that have nothing in common, and what each makes of all rows."""
    bench = make_bench(tmp_path_factory.mktemp("trials"), tiny_model, ROWS)
    api.publish("tiny", str(make_tiny_bert(bench.folder / "second", layers=4, seed=1)), registry=registry_of(bench))
    for version in ("v1", "v2"):
        recipe = bench.recipe(f"{version}.zarr", model__checkpoint=f"tiny@{version}", input__partition_rows=PARTITION)
        run(recipe, scheduler)
    return bench


def registry_of(bench: Bench) -> str:
    return str(bench.folder / "work/registry")


def trial(bench: Bench, name: str, scheduler: str, kind: str, stop_at: int | None = None, **gate: Any) -> Report:
    """Run a job that tries v2 on a third of its partitions; interrupt it once if asked to, and resume it."""
    rules = {kind: {"checkpoint": "tiny@v2", "fraction": 0.3, "gate": gate}}
    recipe = bench.recipe(name, input__partition_rows=PARTITION, consistency=rules)
    if stop_at is not None:

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            run(recipe, scheduler, watch=once(stop_at, stop))
    return run(recipe, scheduler)


def gate_of(report: Report) -> GateReport:
    return GateReport.model_validate_json((Path(report.report).parent / "gate.json").read_bytes())


def tried(bench: Bench, name: str) -> set[int]:
    """Return the partitions that were computed on the candidate, and kept."""
    folders = list((bench.folder / name / "_daskinfer/generations").glob("*/0001"))
    return {int(path.name) for folder in folders for path in folder.glob("embedding/c/*")}


def assert_on(bench: Bench, name: str, version: str) -> None:
    found, wanted = read_output(bench.folder / name), read_output(bench.folder / f"{version}.zarr")
    for array, values in wanted.items():
        assert np.array_equal(found[array], values), array
    registry = Registry(registry_of(bench))
    if "snapshot" in found:
        assert set(found["snapshot"].tolist()) == {registry.resolve(f"tiny@{version}").snapshot}
    for each in ("v1", "v2"):
        assert locks.list_holders(registry, registry.resolve(f"tiny@{each}").snapshot) == []
    assert not any((bench.folder / "work").glob("activations/*"))


@pytest.mark.parametrize("stop_at", [None, 4 * PARTITION])
def test_a_shadow_is_only_looked_at(versions: Bench, scheduler: str, stop_at: int | None) -> None:
    name = f"shadow-{stop_at}.zarr"
    report = trial(versions, name, scheduler, "shadow", stop_at)
    assert data_bytes(versions.folder / name) == data_bytes(versions.folder / "v1.zarr")
    assert_on(versions, name, "v1")
    gate, sample = gate_of(report), tried(versions, name)
    assert 1 < len(sample) < ROWS // PARTITION
    assert gate.rows == len(sample) * PARTITION
    assert gate.verdict == "failed" and any(check.threshold == "min_cosine" for check in gate.checks)
    assert any(incident.kind == "shadow" and "failed" in incident.detail for incident in report.incidents)
    plain = read_output(versions.folder / "v2.zarr")["embedding"]
    (folder,) = (versions.folder / name / "_daskinfer/generations").glob("*/0001")
    kept = read_output(folder)["embedding"]
    for number in sample:
        rows = slice(number * PARTITION, (number + 1) * PARTITION)
        assert np.array_equal(kept[rows], plain[rows])
    assert report.rows_out == ROWS


@pytest.mark.parametrize("stop_at", [None, PARTITION])
def test_a_canary_that_fails_changes_nothing(versions: Bench, scheduler: str, stop_at: int | None) -> None:
    name = f"refused-{stop_at}.zarr"
    report = trial(versions, name, scheduler, "canary", stop_at)
    assert_on(versions, name, "v1")
    assert gate_of(report).verdict == "failed"
    assert [share.rows for share in report.snapshots] == [ROWS]
    assert tried(versions, name), "what was refused is kept, to be looked at"


@pytest.mark.parametrize("stop_at", [None, PARTITION])
def test_a_canary_that_passes_takes_over_everything(versions: Bench, scheduler: str, stop_at: int | None) -> None:
    name = f"passed-{stop_at}.zarr"
    report = trial(versions, name, scheduler, "canary", stop_at, **LENIENT)
    assert_on(versions, name, "v2")
    assert gate_of(report).verdict == "passed"
    assert report.version == 2 and [share.rows for share in report.snapshots] == [ROWS]
    assert (report.rows_out, report.rows_quarantined) == (ROWS, 0)
    assert tried(versions, name) == set()


def test_the_report_goes_with_the_alias(versions: Bench, scheduler: str) -> None:
    report = trial(versions, "release.zarr", scheduler, "canary", **LENIENT)
    gate = Path(report.report).parent / "gate.json"
    words = ("checkpoint", "alias", "tiny", "stable", "v2", "--gate", str(gate), "--json")
    command = daskinfer(*words, cwd=versions.folder)
    out, err = command.communicate(timeout=150)
    assert command.returncode == 0, err
    assert json.loads(out.splitlines()[-1])
    (move,) = api.alias_history("tiny", "stable", registry=registry_of(versions))
    assert move.gate is not None and move.version == 2


def test_a_candidate_must_be_another_version_that_fits(versions: Bench, scheduler: str, tmp_path: Path) -> None:
    recipe = versions.recipe("same.zarr", consistency={"canary": {"checkpoint": "tiny@v1"}})
    with pytest.raises(CheckpointError, match="the candidate tiny@v1 is tiny@prod itself"):
        api.validate(recipe)
    api.publish("odd", str(make_tiny_bert(tmp_path / "odd", layers=3)), registry=registry_of(versions))
    recipe = versions.recipe("odd.zarr", consistency={"shadow": {"checkpoint": "odd@v1"}})
    with pytest.raises(CheckpointError, match="does not fit the plan"):
        run(recipe, scheduler)
