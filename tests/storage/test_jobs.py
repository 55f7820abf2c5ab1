from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daskinfer import api
from daskinfer.errors import Conflict, DaskinferError, IntegrityError, UsageError
from daskinfer.ids import make_nonce
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from daskinfer.spec.rows import InputFile, Partition, Partitions, PartitionTable, Segment
from daskinfer.storage.jobs.store import JobStore, create_job, find_job, list_jobs, status
from tests.support.jobrecords import make_record

STEM = "news-0123456789"


def make_table(partitions: int = 3) -> PartitionTable:
    return PartitionTable(
        format="jsonl",
        files=(InputFile(url="/data/a.jsonl", size=123_456, etag="1"),),
        partition_rows=100,
        rows=100 * partitions,
        partitions=Partitions(
            Partition(
                number=number,
                first_row=100 * number,
                rows=100,
                segments=(Segment(file=0, begin=5000 * number, end=5000 * (number + 1), rows=100, line=1),),
            )
            for number in range(partitions)
        ),
        columns={"text": "string", "id": "int64"},
    )


def make_report(epoch: int, verdict: str) -> Report:
    values: dict[str, object] = dict.fromkeys(Report.model_fields, 0)
    values.update(
        dict.fromkeys(
            ("job", "name", "message", "checkpoint", "snapshot", "recipe", "key", "precision", "trial", "gate"), ""
        )
    )
    values.update(
        dict.fromkeys(("output", "report", "command", "started", "length", "sharing", "left_out", "kernels"), "")
    )
    values.update(
        snapshots=(),
        members=(),
        stages=(),
        retries=(),
        counters={},
        incidents=(),
        rejects=(),
        versions={},
        version=None,
    )
    return Report.model_validate({**values, "epoch": epoch, "verdict": verdict})


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    return str(tmp_path / "work")


@pytest.fixture
def store(workspace: str) -> JobStore:
    return create_job(workspace, make_record, STEM)


def test_record_comes_back(store: JobStore, workspace: str) -> None:
    assert store.job == STEM
    again = JobStore(workspace, STEM)
    assert again.record() == make_record(STEM)
    assert again.record().resolution == make_record(STEM).resolution
    assert again.record().key == make_record(STEM).key


def test_ids_count_up(store: JobStore, workspace: str) -> None:
    assert [create_job(workspace, make_record, STEM).job for _ in range(2)] == [f"{STEM}-r2", f"{STEM}-r3"]
    assert JobStore(workspace, f"{STEM}-r3").record().job == f"{STEM}-r3"


def test_creators_of_equal_records_get_different_jobs(workspace: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: create_job(workspace, make_record, STEM).job, range(8)))
    assert sorted(jobs) == sorted([STEM, *(f"{STEM}-r{run}" for run in range(2, 9))])


def test_table_is_fixed(store: JobStore) -> None:
    with pytest.raises(IntegrityError, match=r"inputs\.json\.gz is gone"):
        store.table()
    table = make_table()
    store.save_table(table)
    store.save_table(table)
    assert store.table() == table
    with pytest.raises(Conflict, match="holds another partition table"):
        store.save_table(make_table(4))
    assert store.table() == table


def test_large_table_is_small_at_rest(store: JobStore) -> None:
    table = make_table(10_000)
    store.save_table(table)
    assert store.table() == table
    assert Path(store.url, "inputs.json.gz").stat().st_size < 400_000


def test_state_over_a_life(store: JobStore, workspace: str) -> None:
    assert store.state() == "stopped"
    assert store.current_epoch() == 0
    lease = store.acquire()
    assert store.state() == "running"
    store.reports.save(make_report(lease.epoch, "failed"), "<html>")
    lease.release()
    assert store.state() == "failed"
    lease = store.acquire()
    assert store.current_epoch() == 2
    assert store.state() == "running"
    lease.release()
    assert store.state() == "stopped", "the report of an earlier driver says nothing about the last one"
    store.reports.save(make_report(2, "interrupted"), "<html>")
    assert store.state() == "stopped"
    store.finish()
    store.finish()
    assert store.state() == "done"


def test_killed_driver_leaves_a_stopped_job(store: JobStore, workspace: str) -> None:
    script = """
import sys
from daskinfer.spec.job.record import Progress
from daskinfer.storage.jobs.store import JobStore

lease = JobStore(sys.argv[1], sys.argv[2]).acquire()
lease.show(Progress(phase="running"))
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, workspace, store.job]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        shown = status(workspace, "news", lambda record: [])
        assert shown.state == "running"
        assert shown.driver.endswith(f":{driver.pid}")
        driver.send_signal(signal.SIGKILL)
    assert status(workspace, "news", lambda record: []).state == "stopped"


def test_report(store: JobStore) -> None:
    assert store.reports.last() is None
    for number in (1, 2):
        page = store.reports.save(make_report(number, "done"), f"<html>{number}")
        assert Path(page).read_text() == f"<html>{number}"
        assert store.reports.last() == make_report(number, "done")


def test_status_counts_from_commits(store: JobStore, workspace: str) -> None:
    shown = status(workspace, STEM, lambda record: [])
    assert (shown.rows_done, shown.rows_total, shown.partitions_done, shown.partitions) == (0, 250, 0, 3)
    assert (shown.driver, shown.heartbeat_age, shown.progress) == ("", None, None)
    lease = store.acquire()
    lease.show(Progress(phase="running", rows_total=250, rows_done=100, rows_quarantined=2))
    lease.release()
    shown = status(workspace, STEM, lambda record: [0, 2])
    assert (shown.rows_done, shown.partitions_done, shown.rows_quarantined) == (150, 2, 2)
    assert shown.heartbeat_age is not None
    assert 0 <= shown.heartbeat_age < 5
    assert (shown.name, shown.checkpoint, shown.snapshot) == ("news", "minilm@prod", "sha256:" + "ab" * 32)


def test_jobs_are_listed_newest_first(workspace: str) -> None:
    assert api.jobs(workspace) == []
    for day, stem in [(2, "b"), (3, "a"), (1, "c")]:
        create_job(workspace, lambda job, day=day: make_record(job, f"2026-01-0{day}T00:00:00+00:00"), stem)  # type: ignore[misc]
    assert [job.job for job in api.jobs(workspace)] == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_job_hides_no_other(workspace: str, damage: str) -> None:
    for stem in ("a", "b", "c"):
        create_job(workspace, make_record, stem)
    place = Path(JobStore(workspace, "b").record_place())
    place.write_bytes(place.read_bytes()[:40])
    if damage == "gone":
        place.unlink()
    told: list[DaskinferError] = []
    assert [job.job for job in api.jobs(workspace, told.append)] == ["c", "a"]
    (error,) = told
    assert str(place) in error.message and error.hint
    with pytest.raises(type(error)):
        api.jobs(workspace)


def test_lookup_by_prefix(store: JobStore, workspace: str) -> None:
    create_job(workspace, make_record, STEM)
    create_job(workspace, make_record, "mail-abcdefabcd")
    assert find_job(workspace, "mail").job == "mail-abcdefabcd"
    assert find_job(workspace, STEM).job == STEM, "an exact id wins over longer ones"
    with pytest.raises(UsageError, match=rf"news begins the ids of 2 jobs: {STEM}, {STEM}-r2"):
        find_job(workspace, "news")
    with pytest.raises(UsageError, match=r"no job mail-abcdefabce in .*\nDid you mean mail-abcdefabcd\?"):
        find_job(workspace, "mail-abcdefabce")
    with pytest.raises(UsageError, match=r"no job zzz in .*\nList them: daskinfer jobs"):
        find_job(workspace, "zzz")
    with pytest.raises(UsageError, match="no job nowhere"):
        JobStore(workspace, "nowhere").record()


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"record": {}}'])
def test_damaged_record(store: JobStore, text: str) -> None:
    Path(store.url, "job.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"job\.json is not a job record"):
        store.record()


def test_damaged_table_and_report(store: JobStore) -> None:
    store.save_table(make_table())
    place = Path(store.url, "inputs.json.gz")
    whole = place.read_bytes()
    for damaged in (whole[:-9], whole[:20] + b"~" * 20 + whole[40:], b"{}"):
        place.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="is not a partition table"):
            store.table()
    Path(store.url, "report.json").write_text(json.dumps({"job": store.job}))
    with pytest.raises(IntegrityError, match="is not a report"):
        store.reports.last()


@pytest.mark.s3
def test_on_s3(s3_url: str) -> None:
    workspace = f"{s3_url}/work-{make_nonce()}"
    assert list_jobs(workspace) == []
    jobs = [create_job(workspace, make_record, STEM) for _ in range(2)]
    assert sorted(list_jobs(workspace)) == [STEM, f"{STEM}-r2"]
    jobs[0].save_table(make_table())
    assert jobs[0].table() == make_table()
    lease = jobs[0].acquire()
    assert status(workspace, STEM, lambda record: [0, 1]).state == "running"
    lease.release()
    jobs[0].finish()
    assert status(workspace, STEM, lambda record: [0, 1, 2]).state == "done"
