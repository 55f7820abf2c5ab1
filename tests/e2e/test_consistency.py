"""Jobs whose alias moves while they run: what each consistency mode makes of it, on real workers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from daskinfer import api
from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench, read_output, run
from tests.e2e.faults import commits, interrupt, once

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

ROWS, PARTITION = 960, 32
PARTITIONS = ROWS // PARTITION
ALIAS = "tiny@prod"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> Bench:
    """Two versions of one model, and what each makes of all rows."""
    bench = make_bench(tmp_path_factory.mktemp("versions"), tiny_model, ROWS)
    second = make_tiny_bert(bench.folder / "second", layers=4, seed=1)
    api.publish("tiny", str(second), registry=registry_of(bench), alias="next")
    for version in ("v1", "v2"):
        run(
            bench.recipe(f"{version}.zarr", model__checkpoint=f"tiny@{version}", input__partition_rows=PARTITION),
            scheduler,
        )
    return bench


def registry_of(bench: Bench) -> str:
    return str(bench.folder / "work/registry")


def snapshot_of(bench: Bench, version: str) -> str:
    return Registry(registry_of(bench)).resolve(f"tiny@{version}").snapshot


@contextmanager
def alias_on(bench: Bench, version: str) -> Iterator[None]:
    """Point the alias at a version, and back again afterwards."""
    api.set_alias("tiny", "prod", version, registry=registry_of(bench))
    try:
        yield
    finally:
        api.set_alias("tiny", "prod", "v1", registry=registry_of(bench))


def move_to(bench: Bench, version: str, rows: int) -> Callable[[Progress], None]:
    """Return a `watch` that moves the alias as soon as so many rows are committed, and lets the job find out."""
    move = once(rows, lambda: api.set_alias("tiny", "prod", version, registry=registry_of(bench)))
    events = 0

    def watch(progress: Progress) -> None:
        nonlocal events
        move(progress)
        if progress.rows_done >= rows and events < 60:
            # The job must not be done before it looks at its alias again, however fast the machine is.
            events += 1
            time.sleep(0.02)

    return watch


def follow(bench: Bench, name: str, scheduler: str, at: int = 4 * PARTITION, **rules: Any) -> Report:
    """Run a job from v1 on; the alias moves to v2 as soon as `at` rows are committed."""
    recipe = bench.recipe(
        name, input__partition_rows=PARTITION, consistency={"refresh": 0.2, **rules},
        pipeline__window=2,
    )  # fmt: skip
    with alias_on(bench, "v1"):
        return run(recipe, scheduler, watch=move_to(bench, "v2", at))


def assert_each_partition_is_whole(bench: Bench, name: str) -> list[str]:
    """Every partition has exactly the bytes of the version that it names; return the version of each."""
    found = read_output(bench.folder / name)
    plain = {version: read_output(bench.folder / f"{version}.zarr") for version in ("v1", "v2")}
    names = {snapshot_of(bench, version): version for version in plain}
    order = []
    for begin in range(0, ROWS, PARTITION):
        (snapshot,) = set(found["snapshot"][begin : begin + PARTITION].tolist())
        order.append(names[snapshot])
        for array in ("embedding", "id", "valid"):
            wanted = plain[names[snapshot]][array][begin : begin + PARTITION]
            assert np.array_equal(found[array][begin : begin + PARTITION], wanted)
    return order


def assert_nothing_is_left(bench: Bench, name: str) -> None:
    assert not list((bench.folder / name / "_daskinfer").glob("generations/*/*"))
    assert not any((bench.folder / "work").glob("activations/*"))
    registry = Registry(registry_of(bench))
    for version in ("v1", "v2"):
        assert locks.list_holders(registry, snapshot_of(bench, version)) == []


def test_strong_stays_where_it_is(versions: Bench, scheduler: str) -> None:
    report = follow(versions, "strong.zarr", scheduler)
    assert [share.snapshot for share in report.snapshots] == [snapshot_of(versions, "v1")]
    assert data_bytes(versions.folder / "strong.zarr") == data_bytes(versions.folder / "v1.zarr")


def test_bounded_starts_nothing_on_what_is_too_old(versions: Bench, scheduler: str) -> None:
    report = follow(versions, "bounded.zarr", scheduler, mode="bounded")
    order = assert_each_partition_is_whole(versions, "bounded.zarr")
    assert set(order) == {"v1", "v2"} and order[-1] == "v2"
    assert [share.partitions for share in report.snapshots] == [order.count("v1"), order.count("v2")]
    assert sum(share.rows for share in report.snapshots) == ROWS
    assert report.snapshot == snapshot_of(versions, "v2")
    manifest = json.loads((versions.folder / "bounded.zarr/_MANIFEST.json").read_text())
    assert [part["snapshot"] for part in manifest["parts"]] == [snapshot_of(versions, version) for version in order]
    assert_nothing_is_left(versions, "bounded.zarr")


def test_an_upgrade_is_a_step(versions: Bench, scheduler: str) -> None:
    report = follow(versions, "upgrade.zarr", scheduler, upgrade=True)
    order = assert_each_partition_is_whole(versions, "upgrade.zarr")
    assert order == sorted(order) and set(order) == {"v1", "v2"}
    kinds = [incident.kind for incident in report.incidents]
    assert kinds.index("alias-moved") < kinds.index("snapshot-moved")
    records = sorted((versions.folder / "upgrade.zarr/_daskinfer/commits").glob("*/g0001/*.json"))
    assert len(records) == order.count("v2"), "commits after the switch have a scope of their own"
    assert_nothing_is_left(versions, "upgrade.zarr")


def test_eventual_that_converges_is_on_one_version(versions: Bench, scheduler: str) -> None:
    report = follow(versions, "converge.zarr", scheduler, mode="eventual", converge=True)
    assert assert_each_partition_is_whole(versions, "converge.zarr") == ["v2"] * PARTITIONS
    assert [share.rows for share in report.snapshots] == [ROWS]
    assert report.rows_out == ROWS
    assert_nothing_is_left(versions, "converge.zarr")


@pytest.mark.parametrize("name", ["tables.parquet", "tables.jsonl"])
def test_tables_name_the_snapshot_of_every_row(versions: Bench, scheduler: str, name: str) -> None:
    follow(versions, name, scheduler, upgrade=True)
    folder = versions.folder / name
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*")):
        if name.endswith("jsonl"):
            rows += map(json.loads, path.read_text().splitlines())
        else:
            rows += pq.read_table(path).to_pylist()
    assert [row["row"] for row in rows] == list(range(ROWS))
    embeddings = {version: read_output(versions.folder / f"{version}.zarr")["embedding"] for version in ("v1", "v2")}
    names = {snapshot_of(versions, version): version for version in embeddings}
    assert {names[row["snapshot"]] for row in rows} == {"v1", "v2"}
    for number, row in enumerate(rows):
        assert np.array_equal(np.array(row["embedding"], np.float32), embeddings[names[row["snapshot"]]][number])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"upgrade": True}, {"v1", "v2"}),
        ({"mode": "bounded", "max_lag": 0}, {"v1", "v2"}),
        ({"mode": "eventual", "converge": True}, {"v2"}),
    ],
)
def test_a_job_is_resumed_after_its_alias_moved(
    versions: Bench, scheduler: str, rules: dict[str, Any], expected: set[str]
) -> None:
    name = f"resumed-{'-'.join(rules)}.zarr"

    recipe = versions.recipe(name, input__partition_rows=PARTITION, consistency={"refresh": 0.2, **rules})
    interrupt(recipe, scheduler, rows=8 * PARTITION)
    before = commits(versions.folder / name)
    with alias_on(versions, "v2"):
        report = run(recipe, scheduler)
        again = run(recipe, scheduler)
    assert report.partitions_resumed == len(before) >= 8
    assert set(assert_each_partition_is_whole(versions, name)) == expected
    assert again.job == report.job, "a finished job is not run again"
    assert_nothing_is_left(versions, name)


def test_a_version_that_does_not_fit(versions: Bench, scheduler: str, tmp_path: Path) -> None:
    """Another number of layers is another plan."""
    other = make_tiny_bert(tmp_path / "other", layers=3)
    api.publish("tiny", str(other), registry=registry_of(versions), alias="odd")
    changes: dict[str, Any] = {"input__partition_rows": PARTITION, "pipeline__window": 2}
    recipe = versions.recipe("odd.zarr", consistency={"mode": "eventual", "refresh": 0.2}, **changes)
    with alias_on(versions, "v1"):
        report = run(recipe, scheduler, watch=move_to(versions, "odd", PARTITION))
        assert [share.snapshot for share in report.snapshots] == [snapshot_of(versions, "v1")]
        assert any(incident.kind == "snapshot-refused" for incident in report.incidents)
    with alias_on(versions, "v1"), pytest.raises(CheckpointError, match="does not fit the plan of job tiny"):
        bounded = versions.recipe("bound.zarr", consistency={"mode": "bounded", "refresh": 0.2}, **changes)
        run(bounded, scheduler, watch=move_to(versions, "odd", PARTITION))


def test_a_version_number_cannot_be_followed(versions: Bench) -> None:
    recipe = versions.recipe("number.zarr", model__checkpoint="tiny@v1", consistency={"mode": "bounded"})
    with pytest.raises(RecipeError, match="tiny@v1 is no alias"):
        api.validate(recipe)


def test_two_drivers_of_one_job(versions: Bench, scheduler: str) -> None:
    """Begun, and resumed, twice at once by the command: one goes on, the other says so, and the output is right."""
    recipe = versions.write_recipe(
        input__partition_rows=PARTITION, cluster__address=scheduler, placement__requires={"TWO": 1}
    )
    words = ("run", recipe.name, "--json", "--set", "output.url=twice.zarr")
    for turn in ("begun", "resumed"):
        drivers = [daskinfer(*words, cwd=versions.folder) for _ in range(2)]
        if turn == "begun":
            while len(commits(versions.folder / "twice.zarr")) < 4:
                assert any(driver.poll() is None for driver in drivers)
                time.sleep(0.01)
            for driver in drivers:
                driver.kill()
        results = [driver.communicate(timeout=400) for driver in drivers]
        told = [json.loads(out.splitlines()[-1]) for out, _ in results if out]
    assert sorted(each["code"] for each in told) in ([0, 0], [0, 1]), results
    for loser in (each for each in told if each["code"]):
        assert re.search("is being run by|was taken a moment ago by", loser["error"])
    assert data_bytes(versions.folder / "twice.zarr") == data_bytes(versions.folder / "v1.zarr")
