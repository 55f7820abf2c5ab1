"""A report of a run that did nothing does not replace that of one that did."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.api import runs
from daskinfer.errors import JobFailed


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
