"""A report of a run that did nothing does not replace that of one that did."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.api import runs
from daskinfer.errors import JobFailed
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.run_report import make_report
from daskinfer.runtime.jobs.whole_job import WholeJob
from daskinfer.storage.jobs.store import JobStore
from daskinfer.testing.fixtures.jobs import finish_job


@pytest.mark.parametrize(
    ("earlier", "rows", "error", "saved"),
    [
        (300, 0, JobFailed("no workers"), False),
        (300, 16, JobFailed("no workers"), True),
        (0, 0, JobFailed("no workers"), True),
        (None, 0, JobFailed("no workers"), True),
        # It has sealed what an earlier one computed.
        (300, 0, None, True),
    ],
)
def test_which_report_is_kept(
    earlier: int | None, rows: int, error: Exception | None, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    before = None if earlier is None else SimpleNamespace(rows_this_run=earlier)
    reports = SimpleNamespace(last=lambda member: before, save=lambda *words: kept.append(words))
    store: Any = SimpleNamespace(reports=reports)
    monkeypatch.setattr(runs, "render_html", lambda report: "page")
    session: Any = SimpleNamespace(member="", error=error)
    report: Any = SimpleNamespace(rows_this_run=rows)
    runs._save_report(store, session, report)
    assert bool(kept) == saved


def test_a_report_names_no_secret_of_the_command(tmp_path: Path) -> None:
    record = finish_job(str(tmp_path / "work"), str(tmp_path / "labels.jsonl"))
    store = JobStore(str(tmp_path / "work"), "demo")
    work = WholeJob(OpenedJob(store, record, record.plan, resumed=False, done=False))
    clock = SimpleNamespace(startup_seconds=1.0, running_seconds=1.0)
    session: Any = SimpleNamespace(
        job=OpenedJob(store, record, record.plan, resumed=False, done=False),
        member="",
        reporter=clock,
        work=work,
        progress=work.progress,
        error=None,
        counters={},
        epoch=1,
    )
    command = "daskinfer run recipe.yaml --set input.url=http://ann:planted-word@host/in.jsonl"
    report = make_report(session, command, seconds=2.0, started=record.created)
    assert report.command.startswith("daskinfer run recipe.yaml --set input.url=http://ann:${")
    assert "planted-word" not in report.model_dump_json()
