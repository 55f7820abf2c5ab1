"""Several drivers on one job, each with a cluster of its own: whoever dies or leaves, the output is what it would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from daskinfer import api
from daskinfer.errors import UsageError
from daskinfer.spec.job.report import Report
from daskinfer.storage.jobs.store import JobStore, list_jobs
from tests.e2e.conftest import Bench, daskinfer, data_bytes, make_bench, run
from tests.e2e.faults import commits
from tests.e2e.heldworker import held_environment, holding

ROWS, PARTITION = 1920, 32


def count_rows(output: Path) -> Counter[str]:
    """Return member -> rows that its commit records tell of."""
    rows: Counter[str] = Counter()
    for record in commits(output).values():
        rows[record["member"]] += record["rows_in"]
    return rows


def test_members_divide_the_work(bench: Bench, scheduler: str) -> None:
    """Two at once on the same workers, the hardest case for tokens and keys."""
    calm, shared = (bench.recipe(f"{name}.zarr", input__partition_rows=16) for name in ("calm", "shared"))
    before = run(calm, scheduler).job
    with ThreadPoolExecutor(2) as pool:
        reports: list[Report] = list(pool.map(lambda _: run(shared, scheduler, join=True), range(2)))
    assert data_bytes(bench.folder / "shared.zarr") == data_bytes(bench.folder / "calm.zarr")
    (job,) = {report.job for report in reports}
    assert set(list_jobs(calm.workspace)) == {before, job}, "a job that nobody runs is left over"
    rows = count_rows(bench.folder / "shared.zarr")
    assert rows.total() == 300
    for report in reports:
        assert (report.verdict, report.rows_out, report.epoch) == ("done", 300, reports[0].epoch)
        member = Path(report.report).stem
        assert report.rows_this_run == rows[member]
        assert {share.member: share.rows for share in report.members} == rows
    whole = JobStore(calm.workspace, job).reports.last()
    assert whole in reports
    found = api.status(job, calm.workspace)
    assert found.state == "done"
    assert {member.member: member.rows_done for member in found.members} == rows
    assert not any((bench.folder / "work").glob("activations/*"))


def test_changing_snapshots_are_not_shared(bench: Bench) -> None:
    for consistency, word in (
        ({"mode": "bounded"}, "bounded"),
        ({"mode": "eventual"}, "eventual"),
        ({"upgrade": True}, "upgrade"),
        ({"canary": {"checkpoint": "tiny@v2"}}, "canary"),
        ({"shadow": {"checkpoint": "tiny@v2"}}, "shadow"),
    ):
        with pytest.raises(UsageError, match=f"--join cannot be had with consistency {word}"):
            api.run(bench.recipe(consistency=consistency), join=True)


def start(bench: Bench, name: str, *words: str) -> subprocess.Popen[str]:
    """Start the job on workers of its own, which may be held."""
    changes = ("--set", f"output.url={name}", "--set", f"name={name.removesuffix('.zarr')}")
    env = held_environment(bench.folder)
    return daskinfer("run", "recipe.yaml", *changes, *words, "--json", cwd=bench.folder, env=env)


def await_members(output: Path, jobs: list[subprocess.Popen[str]], rows: int) -> None:
    """Wait until each of so many members has committed so many rows."""
    deadline = time.monotonic() + 150
    while sum(count >= rows for count in count_rows(output).values()) < len(jobs):
        assert all(job.poll() is None for job in jobs), [job.communicate() for job in jobs if job.poll() is not None]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(job: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    report = json.loads(Path(json.loads(out.splitlines()[-1])["report"]).with_suffix(".json").read_text())
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> Bench:
    """A job of 30 partitions, and `calm.zarr`: what it writes when one driver runs it undisturbed."""
    bench = make_bench(tmp_path_factory.mktemp("join"), tiny_model, ROWS)
    run(bench.recipe("calm.zarr", input__partition_rows=PARTITION), scheduler)
    bench.write_recipe(
        input__partition_rows=PARTITION,
        pipeline__activations={"transport": "zarr"},
        cluster__local={"workers": 2, "threads": 1},
    )
    return bench


def assert_calm(bench: Bench, name: str) -> None:
    assert data_bytes(bench.folder / name) == data_bytes(bench.folder / "calm.zarr")
    records = commits(bench.folder / name)
    assert sorted(records) == list(range(ROWS // PARTITION))
    assert count_rows(bench.folder / name).total() == ROWS
    assert not any((bench.folder / "work").glob("activations/*"))


@pytest.mark.slow
@pytest.mark.late
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("killed.zarr", lambda job: job.kill()),
        # As Ctrl-C does in a terminal.
        pytest.param("interrupted.zarr", lambda job: os.killpg(job.pid, signal.SIGINT), marks=pytest.mark.campaign),
    ],
)
def test_the_others_finish(folder: Bench, name: str, stop: Any) -> None:
    with holding(folder.folder, "commit_partition", after=2):
        first, second = (start(folder, name, "--join") for _ in range(2))
        await_members(folder.folder / name, [first, second], 2 * PARTITION)
        workers = psutil.Process(first.pid).children(recursive=True)
        stop(first)
        first.communicate(timeout=150)
    report = finish(second)
    psutil.wait_procs(workers, timeout=60)
    assert_calm(folder, name)
    assert report["rows_out"] == ROWS
    assert 0 < report["rows_this_run"] < ROWS
    assert len(report["members"]) == 2
    assert sum(share["rows"] for share in report["members"]) == ROWS


@pytest.mark.slow
@pytest.mark.late
def test_alone_or_together(folder: Bench) -> None:
    """A job is run by one driver or by members; each is told how it is run, and neither harms the other."""
    with holding(folder.folder, "commit_partition", after=1):
        member = start(folder, "either.zarr", "--join")
        await_members(folder.folder / "either.zarr", [member], PARTITION)
        alone = start(folder, "either.zarr")
        out, _ = alone.communicate(timeout=150)
        assert alone.returncode == 1
        failure = json.loads(out.splitlines()[-1])
        assert f"is being run by 1 member(s), among them process {member.pid}" in failure["error"]
        assert "Add --join" in failure["hint"]
        os.killpg(member.pid, signal.SIGINT)
        member.communicate(timeout=150)

        alone = start(folder, "either.zarr")
        deadline = time.monotonic() + 120
        while not count_rows(folder.folder / "either.zarr")[""]:
            assert alone.poll() is None, alone.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        member = start(folder, "either.zarr", "--join")
        out, _ = member.communicate(timeout=150)
        assert member.returncode == 1
        assert "start it with --join" in json.loads(out.splitlines()[-1])["hint"]
        os.killpg(alone.pid, signal.SIGINT)
        alone.communicate(timeout=150)

    report = finish(start(folder, "either.zarr", "--join"))
    assert report["epoch"] == 4, "opening, together, alone, together"
    assert_calm(folder, "either.zarr")
