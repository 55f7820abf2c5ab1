"""Which snapshot and which job: aliases that move, runs that stop, recipes that change, outputs that belong to others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client

from daskinfer import api
from daskinfer.errors import Interrupted, JobBusy, JobFailed, OutputOwned, RejectBudgetExceeded
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.conftest import WORDS, Bench, data_bytes, read_output, run, write_rows
from tests.e2e.faults import commits, fingerprints, interrupt, once

pytestmark = [pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

ROWS, PARTITIONS = 120, 8


@pytest.fixture
def bench(bench: Bench) -> Bench:
    write_rows(bench.folder / "in.jsonl", ROWS)
    return bench


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "other", layers=4, seed=1)


@pytest.fixture
def versions(bench: Bench, other_model: Path) -> tuple[str, str]:
    """Snapshots of `tiny@v1`, which `tiny@prod` means, and of `tiny@v2`, which has other weights."""
    second = api.publish("tiny", str(other_model), registry=registry_of(bench))
    return api.checkpoint("tiny@v1", registry_of(bench)).resolution.snapshot, second.snapshot


def registry_of(bench: Bench) -> str:
    return str(bench.folder / "work/registry")


def move_alias(bench: Bench) -> None:
    api.set_alias("tiny", "prod", "v2", registry=registry_of(bench))


def small(bench: Bench, name: str = "out.zarr", **changes: Any) -> Any:
    return bench.recipe(name, **{"input__partition_rows": 16, **changes})


def assert_only_on(output: Path, snapshot: str) -> None:
    """Everything that names a snapshot names this one."""
    records = commits(output)
    manifest = json.loads((output / "_MANIFEST.json").read_text())
    assert {record["snapshot"] for record in records.values()} == {snapshot}
    assert (manifest["snapshot"], manifest["snapshots"]) == (snapshot, [snapshot])
    assert {part["snapshot"] for part in manifest["parts"]} == {snapshot}
    assert len({record["job"] for record in records.values()}) == 1


# The alias


def test_an_alias_moved_in_mid_run_changes_no_row(bench: Bench, scheduler: str, versions: tuple[str, str]) -> None:
    run(small(bench, "calm.zarr"), scheduler)
    moved = []

    def move() -> None:
        moved.append(len(commits(bench.folder / "out.zarr")))
        move_alias(bench)

    report = run(small(bench, pipeline__window=2), scheduler, watch=once(32, move))
    assert 2 <= moved[0] < PARTITIONS
    assert api.checkpoint("tiny@prod", registry_of(bench)).resolution.snapshot == versions[1]
    assert report.snapshot == versions[0]
    assert_only_on(bench.folder / "out.zarr", versions[0])
    assert zarr.open_group(str(bench.folder / "out.zarr"), mode="r").attrs["daskinfer_snapshot"] == versions[0]
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")
    # The other snapshot would have shown.
    run(small(bench, "later.zarr"), scheduler)
    assert_only_on(bench.folder / "later.zarr", versions[1])
    later, calm = read_output(bench.folder / "later.zarr"), read_output(bench.folder / "calm.zarr")
    assert not np.isclose(later["embedding"], calm["embedding"]).all(axis=1).any()


@pytest.mark.parametrize("suffix", ["zarr", "parquet", "jsonl"])
def test_an_interrupted_run_goes_on_where_it_stopped_on_its_snapshot(
    bench: Bench, scheduler: str, versions: tuple[str, str], suffix: str
) -> None:
    output = bench.folder / f"out.{suffix}"
    for name in ("calm", "calm-too"):
        run(small(bench, f"{name}.{suffix}"), scheduler)
    calm = data_bytes(bench.folder / f"calm.{suffix}")
    assert calm == data_bytes(bench.folder / f"calm-too.{suffix}")
    interrupt(small(bench, output.name), scheduler)
    done = commits(output)
    assert 2 <= len(done) < PARTITIONS
    before = {
        path: print_
        for path, print_ in fingerprints(output).items()
        if any(path.match(f"{pattern}") for number in done for pattern in files_of(number))
    }
    move_alias(bench)
    report = run(small(bench, output.name), scheduler)
    assert [incident.kind for incident in report.incidents] == ["resumed"]
    assert (report.partitions_resumed, report.snapshot, report.epoch) == (len(done), versions[0], 2)
    assert report.rows_this_run == ROWS - 16 * len(done)
    after = fingerprints(output)
    assert len(before) >= 2 * len(done)
    assert {path: after[path] for path in before} == before
    assert_only_on(output, versions[0])
    assert {record["epoch"] for number, record in commits(output).items() if number not in done} == {2}
    assert data_bytes(output) == calm


def files_of(partition: int) -> list[str]:
    return [f"commits/*/{partition:08d}.json", f"part-{partition:08d}.*", f"c/{partition}", f"c/{partition}/0"]


# A finished job


def test_a_finished_job_is_reported_at_once_and_nothing_is_written(bench: Bench, scheduler: str) -> None:
    first = run(small(bench), scheduler)
    before = fingerprints(bench.folder)
    assert run(small(bench), scheduler) == first
    assert fingerprints(bench.folder) == before


def test_a_finished_job_whose_alias_moved(bench: Bench, scheduler: str, versions: tuple[str, str]) -> None:
    first = run(small(bench), scheduler)
    move_alias(bench)
    before = fingerprints(bench.folder)
    with pytest.raises(OutputOwned) as refusal:
        run(small(bench), scheduler)
    assert all(snapshot.removeprefix("sha256:")[:8] in str(refusal.value) for snapshot in versions)
    assert refusal.value.exit_code == 2
    assert fingerprints(bench.folder) == before
    report = run(small(bench), scheduler, fresh=True)
    assert (report.snapshot, report.partitions_resumed) == (versions[1], 0)
    assert_only_on(bench.folder / "out.zarr", versions[1])
    assert commits(bench.folder / "out.zarr")[0]["job"] == report.job != first.job


@pytest.mark.parametrize("suffix", ["zarr", "parquet"])
@pytest.mark.parametrize("cut_off", [False, True], ids=["whole", "cut-off"])
def test_starting_over_leaves_nothing_of_the_old_job(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch, suffix: str, cut_off: bool
) -> None:
    output, rows = bench.folder / f"out.{suffix}", bench.folder / "in.jsonl"
    good = rows.read_text()
    rows.write_text(good + "not json\n" + good)
    with pytest.raises(RejectBudgetExceeded):
        run(small(bench, output.name, errors__max_rows=0), scheduler)
    (stopped,) = api.jobs(str(bench.folder / "work"))
    assert (output / "_quarantine").exists() and [held.job for held in api.locks(registry_of(bench))] == [stopped.job]
    rows.write_text(good)
    if cut_off:  # after the output has changed hands, before anything old is deleted

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises((Interrupted, KeyboardInterrupt)):
            patch.setattr("daskinfer.storage.outputs.commit_log.CommitLog.discard", stop)
            run(small(bench, output.name, input__partition_rows=32), scheduler, fresh=True)
    run(small(bench, output.name, input__partition_rows=32), scheduler, fresh=not cut_off)
    run(small(bench, f"calm.{suffix}", input__partition_rows=32), scheduler)
    assert data_bytes(output) == data_bytes(bench.folder / f"calm.{suffix}")
    assert not (output / "_quarantine").exists()
    assert len(list(output.glob("_daskinfer/commits/*/*.json"))) == len(commits(output)) == 4
    manifests = [
        json.loads((bench.folder / name / "_MANIFEST.json").read_text()) for name in (output.name, f"calm.{suffix}")
    ]
    assert manifests[0]["rows_in"] == ROWS and manifests[0]["parts"] == manifests[1]["parts"]
    # It can never go on, so it holds nothing either.
    assert api.status(stopped.job, str(bench.folder / "work")).state == "replaced"
    assert not api.locks(registry_of(bench))


# Another job


def add_row(bench: Bench) -> None:
    with (bench.folder / "in.jsonl").open("a") as file:
        file.write(json.dumps({"id": "row-more", "text": WORDS[1]}) + "\n")


def touch(bench: Bench) -> None:
    os.utime(bench.folder / "in.jsonl", (1, 1))


@pytest.mark.usefixtures("versions")
def test_what_changes_the_output_is_another_job(bench: Bench, scheduler: str) -> None:
    output = bench.folder / "out.zarr"
    interrupt(small(bench), scheduler)
    old = commits(output)

    def refuse(what: str, **changes: Any) -> None:
        before = fingerprints(output)
        with pytest.raises(OutputOwned, match=what) as refusal:
            run(small(bench, **changes), scheduler)
        assert old[0]["job"] in str(refusal.value) and "--fresh" in str(refusal.value)
        assert fingerprints(output) == before

    def start_over(**changes: Any) -> None:
        report = run(small(bench, **changes), scheduler, fresh=True)
        assert report.partitions_resumed == 0 and report.rows_this_run == report.rows_in
        assert {record["job"] for record in commits(output).values()} == {report.job} != {old[0]["job"]}
        run(small(bench, "calm.zarr", **changes), scheduler)
        assert data_bytes(output) == data_bytes(bench.folder / "calm.zarr")

    refuse(r"the recipe \(model.options.max_length\) has changed", model__options={"max_length": 32})
    refuse(r"the recipe \(model.checkpoint\) has changed", model__checkpoint="tiny@v2")
    refuse(r"the recipe \(output.keep\) has changed", output__keep=[])
    refuse(r"the recipe \(pipeline.stages\) has changed", pipeline__stages=1)
    touch(bench)
    refuse("an input file has changed")
    add_row(bench)
    refuse("an input file has changed")
    start_over(model__checkpoint="tiny@v2", pipeline__stages=1)


def test_other_code_is_another_job_and_no_worker_may_run_other_code(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = bench.folder / "out.zarr"
    interrupt(small(bench), scheduler)
    before = fingerprints(output)
    for module in ("job_resolution", "request_resolution"):
        monkeypatch.setattr(f"daskinfer.runtime.jobs.{module}.digest_source", lambda: "sha256:other")
    with pytest.raises(OutputOwned, match="daskinfer's code has changed"):
        run(small(bench), scheduler)
    assert fingerprints(output) == before
    with pytest.raises(JobFailed, match="runs other daskinfer code than the driver"):
        run(small(bench), scheduler, fresh=True)
    assert not commits(output) and not list(output.glob("*/c"))


def test_another_workspace_is_another_job(bench: Bench, scheduler: str) -> None:
    interrupt(small(bench), scheduler)
    elsewhere = small(bench, workspace=str(bench.folder / "elsewhere"), model__registry=registry_of(bench))
    before = fingerprints(bench.folder / "out.zarr")
    with pytest.raises(OutputOwned, match=f"which workspace {bench.folder}/elsewhere does not know"):
        run(elsewhere, scheduler)
    assert fingerprints(bench.folder / "out.zarr") == before
    assert run(elsewhere, scheduler, fresh=True).partitions_resumed == 0


def test_what_cannot_change_the_output_is_the_same_job(bench: Bench, scheduler: str) -> None:
    run(small(bench, "calm.zarr"), scheduler)
    interrupt(small(bench), scheduler)
    done = commits(bench.folder / "out.zarr")
    changes: dict[str, Any] = {
        "pipeline__window": 1,
        "errors__max_rows": 7,
        "model__registry": f"file://{bench.folder}/work/../work/registry/",
        "output__url": f"{bench.folder}/./out.zarr/",
    }
    report = run(small(bench, **changes), scheduler, workers=4)
    assert (report.job, report.partitions_resumed, report.epoch) == (done[0]["job"], len(done), 2)
    assert sum(len(stage.workers) for stage in report.stages) == 4
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")


def test_options_of_an_earlier_job_on_the_same_workers_do_not_stick(bench: Bench, scheduler: str) -> None:
    results = []
    for normalize in (False, True):
        recipe = small(bench, f"{normalize}.zarr", model__options={"max_length": 48, "normalize": normalize})
        run(recipe, scheduler)
        results.append(read_output(bench.folder / f"{normalize}.zarr")["embedding"])
    lengths = np.linalg.norm(results[0], axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(results[1], results[0] / lengths, rtol=1e-5, atol=1e-6)


# Others


def test_a_folder_with_foreign_files_is_left_alone(bench: Bench, scheduler: str) -> None:
    output = bench.folder / "out.zarr"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(OutputOwned, match=r"files that daskinfer did not write: thesis\.txt"):
            run(small(bench), scheduler, fresh=fresh)
    assert [path.name for path in output.rglob("*")] == ["thesis.txt"]


def test_a_folder_that_was_copied_is_not_taken_for_the_place_where_its_job_writes(
    bench: Bench, scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(small(bench), scheduler)
    copied = replace(bench, folder=tmp_path_factory.mktemp("copied") / "all")
    shutil.copytree(bench.folder, copied.folder)
    before = fingerprints(bench.folder / "out.zarr")
    with pytest.raises(OutputOwned, match=f"was moved or copied from {bench.folder}/out.zarr"):
        run(small(copied), scheduler)
    assert fingerprints(bench.folder / "out.zarr") == before


def test_a_job_that_runs_elsewhere_is_not_touched(bench: Bench, scheduler: str) -> None:
    interrupt(small(bench), scheduler)
    job = next(iter(commits(bench.folder / "out.zarr").values()))["job"]
    holder = (
        "import sys; from daskinfer.storage.jobs.store import JobStore; lease = JobStore(*sys.argv[1:]).acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(bench.folder / "work"), job]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = fingerprints(bench.folder / "out.zarr")
        for fresh, recipe in ((False, small(bench)), (True, small(bench)), (True, small(bench, output__keep=[]))):
            with pytest.raises(JobBusy, match=f"{job} is being run by process {other.pid}"):
                run(recipe, scheduler, fresh=fresh)
        changes = {"address": scheduler, "local": None}
        with pytest.raises(JobBusy, match=f"{job} is being run by process {other.pid}"):
            api.validate(small(bench).model_copy(update={"cluster": small(bench).cluster.model_copy(update=changes)}))
        assert fingerprints(bench.folder / "out.zarr") == before
        other.kill()
    assert run(small(bench), scheduler).epoch == 3


def test_a_job_whose_output_is_taken_over_stops(bench: Bench, scheduler: str) -> None:
    changes: dict[str, Any] = {
        "workspace": str(bench.folder / "elsewhere"),
        "model__registry": registry_of(bench),
        "model__options": {"max_length": 16},
    }
    run(small(bench, "calm.zarr", **changes), scheduler)
    taken = []

    def take() -> None:
        taken.append(run(small(bench, **changes), scheduler, fresh=True).job)

    with pytest.raises(OutputOwned, match="was taken over by job"):
        run(small(bench), scheduler, watch=once(32, take))
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")
    assert json.loads((bench.folder / "out.zarr/_MANIFEST.json").read_text())["job"] == taken[0]


def test_a_local_directory_is_published_on_first_use_and_only_then(
    bench: Bench, scheduler: str, other_model: Path
) -> None:
    snapshots = set()
    for name in ("out.zarr", "out.zarr", "more.parquet"):
        snapshots.add(run(small(bench, name, model__checkpoint=str(other_model)), scheduler).snapshot)
        stored = sorted((bench.folder / "work/registry").glob("[bm][la]*/*/*.*"))
        assert len(api.checkpoint("other", registry_of(bench)).versions) == 1
        assert snapshots == {api.checkpoint("other@v1", registry_of(bench)).resolution.snapshot}
        snapshots.add(api.checkpoint("other", registry_of(bench)).resolution.snapshot)
    assert stored == sorted((bench.folder / "work/registry").glob("[bm][la]*/*/*.*"))


def test_an_interrupted_job_leaves_the_cluster_to_others(bench: Bench, scheduler: str) -> None:
    def count_connections(since: float, dask_scheduler: Any) -> int:
        # The log is bounded: the sum over all of it does not grow for ever.
        events = dask_scheduler.get_events("all")
        return sum(at >= since and event["action"] == "add-client" for at, event in events)

    with Client(scheduler) as client:
        began = time.time()
        interrupt(small(bench), scheduler, rows=16)
        job = next(iter(commits(bench.folder / "out.zarr").values()))["job"]
        known = client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))
        assert not [key for key in known if job in key]
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        # One to look for workers, one to run, one to wait for rest: none was lost and made again.
        assert client.run_on_scheduler(count_connections, began) == 3
    assert not any(amount for worker in workers for tag, amount in worker["resources"].items() if tag.startswith(job))
