from __future__ import annotations

import json
from typing import Any

import pytest

from daskinfer.reports.page import divide_run, divide_stage, mark_axis, render_html
from daskinfer.spec.job.membership import MemberShare
from daskinfer.spec.job.report import Incident, Report, StageReport
from tests.support.htmlpage import Page

STAGES = (
    StageReport(
        stage=0,
        layers="embeddings, 0-2",
        shard_bytes=68_400_000,
        read_bytes=68_500_000,
        load_seconds=1.31,
        workers=("tcp://127.0.0.1:40001",),
        microbatches=412,
        compute=30.1,
        receive=0.4,
        send=1.2,
        busy=0.91,
    ),
    StageReport(
        stage=1,
        layers="3-5, pooler",
        shard_bytes=22_400_000,
        read_bytes=44_800_000,
        load_seconds=0.62,
        workers=("tcp://127.0.0.1:40002", "tcp://127.0.0.1:40003"),
        microbatches=412,
        compute=27.7,
        receive=1.9,
        send=0.1,
        busy=0.43,
    ),
)


def make_report(**changes: Any) -> Report:
    report = Report(
        job="embed-news-3f9a1c0b",
        name="embed-news",
        verdict="done",
        message="All 10,000 rows are committed.",
        checkpoint="minilm@prod",
        snapshot="sha256:" + "3f9a1c0b" * 8,
        version=3,
        recipe="sha256:" + "a1" * 32,
        key="sha256:" + "b2" * 32,
        rows_in=10_000,
        rows_out=10_000,
        rows_quarantined=0,
        rows_this_run=10_000,
        partitions=5,
        partitions_resumed=0,
        epoch=1,
        tokens=181_234,
        padded_tokens=190_512,
        seconds=41.7,
        startup_seconds=6.2,
        running_seconds=34.8,
        stages=STAGES,
        counters={"workers_lost": 0, "corrupt_activations": 0, "task_failures": 0, "microbatches_recomputed": 0},
        incidents=(),
        rejects=(),
        versions={"python": "3.11.9", "daskinfer": "0.1.0", "torch": "2.13.0"},
        output="file:///data/results/news.zarr",
        report="file:///data/work/jobs/embed-news-3f9a1c0b/report.html",
        command="daskinfer run recipe.yaml --set pipeline.stages=2",
        started="2026-11-21T03:40:00+00:00",
    )
    return report.model_copy(update=changes)


FAILURES: dict[str, dict[str, Any]] = {
    "failed": {"message": "Stage 1 failed three times on partition 4.", "rows_out": 6_144},
    "interrupted": {"message": "Stopped by the user.", "rows_out": 8_192},
    "over budget": {"message": "120 rows were quarantined; 100 may be.", "rows_out": 5_000, "rows_quarantined": 120},
}


@pytest.mark.parametrize("verdict", FAILURES)
def test_a_run_that_stopped_says_how_to_go_on(verdict: str) -> None:
    report = make_report(verdict=verdict, **FAILURES[verdict])
    page = Page(render_html(report))
    missing = report.rows_in - report.rows_out - report.rows_quarantined
    said = f"10,000 rows in = {report.rows_out:,} rows out + {report.rows_quarantined:,} quarantined"
    assert f"{said} + {missing:,} still to do" in page.text
    assert "goes on where this run stopped" in page.text
    assert report.message in page.text
    assert report.command in page.text


def test_a_done_run_adds_up() -> None:
    page = Page(render_html(make_report(rows_out=9_998, rows_quarantined=2, rejects=("data/a.jsonl:17: not JSON",))))
    assert "10,000 rows in = 9,998 rows out + 2 quarantined" in page.text
    assert "still to do" not in page.text
    assert "The first 1 of 2" in page.text
    assert "data/a.jsonl:17: not JSON" in page.text
    assert "sha256:" + "3f9a1c0b" * 8 in page.text
    assert "reports it at once" in page.text


def test_the_page_needs_nothing_else() -> None:
    text = render_html(make_report(rejects=tuple(f"row {i}: " + "x" * 80 for i in range(20)), rows_quarantined=20))
    assert len(text) < 60_000
    assert not [tag for tag, _ in Page(text).tags if tag in {"script", "link", "img", "iframe", "object"}]
    assert "url(" not in text
    assert not [name for _, attrs in Page(text).tags for name in attrs if name in {"src", "href"}]


def test_what_users_wrote_is_escaped() -> None:
    evil = "</title></style><script>alert(1)</script>\"'&"
    text = render_html(
        make_report(
            name=evil,
            message=evil,
            checkpoint=evil,
            output=evil,
            command=evil,
            rows_quarantined=1,
            rejects=(evil,),
            incidents=(Incident(at=1, kind=evil, detail=evil),),
            versions={evil: evil},
        )
    )
    assert "<script" not in text
    assert Page(text).text.count("alert(1)") >= 9


def test_an_incident_says_how_long_it_took() -> None:
    incidents = (
        Incident(at=5, kind="worker-frozen", detail="b is silent", detect_seconds=15.4, recover_seconds=71.0),
        Incident(at=9, kind="resumed", detail="epoch 2"),
    )
    words = Page(render_html(make_report(incidents=incidents))).text
    assert "worker-frozen b is silent 15.4 s 1 min 11 s" in words
    assert "resumed epoch 2" in words


def test_a_job_that_never_started_still_renders() -> None:
    empty = make_report(
        verdict="failed", rows_out=0, seconds=0.0, startup_seconds=0.0, running_seconds=0.0, stages=(), tokens=0,
        padded_tokens=0, version=None, rows_this_run=0, incidents=(Incident(at=0.0, kind="x", detail="y"),),
    )  # fmt: skip
    Page(render_html(empty))


def test_bars_are_whole_and_in_proportion() -> None:
    for stage in STAGES:
        slices = divide_stage(stage, 34.8)
        assert [part.name for part in slices] == ["compute", "receive", "send", "idle"]
        assert sum(part.width for part in slices) == pytest.approx(100)
        assert 100 - slices[-1].width == pytest.approx(100 * stage.busy)
        assert slices[0].width / slices[1].width == pytest.approx(stage.compute / stage.receive)
    assert [round(part.seconds, 3) for part in divide_run(make_report())] == [6.2, 34.8, 0.7]


def test_an_idle_stage_is_idle() -> None:
    unused = STAGES[1].model_copy(update={"compute": 0.0, "receive": 0.0, "send": 0.0, "busy": 0.0})
    assert divide_stage(unused, 10.0)[-1].seconds == 20.0
    assert divide_stage(unused, 10.0)[-1].width == 100


def test_the_axis_has_a_handful_of_round_times() -> None:
    assert [label for _, label in mark_axis(41.7)] == ["0 ms", "10.0 s", "20.0 s", "30.0 s", "40.0 s"]
    for seconds in (0.004, 1.0, 59.0, 3_600.0, 1e6):
        assert 2 <= len(mark_axis(seconds)) <= 7
        assert all(0 <= place <= 100.0001 for place, _ in mark_axis(seconds))
    assert mark_axis(0.0) == []


def test_json_is_the_whole_report() -> None:
    report = make_report()
    assert Report.model_validate(json.loads(report.model_dump_json())) == report


def test_who_did_what_is_told() -> None:
    shares = tuple(MemberShare(member=f"m{n}", driver=f"host:{n}", partitions=n, rows=1_000 * n) for n in (2, 3))
    page = render_html(make_report(members=shares))
    assert "<code>host:2</code>: 2" in page
    assert "<code>host:3</code>: 3" in page
    assert "Rows by" not in render_html(make_report())
