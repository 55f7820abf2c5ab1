"""The report as one HTML file that needs nothing else: no script, no network, no font."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from daskinfer.ids import shorten
from daskinfer.spec.job.report import Report, StageReport
from daskinfer.units import format_bytes, format_count, format_duration


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a bar."""

    name: str
    """What the time was spent on; also its CSS class."""
    seconds: float
    """How much."""
    start: float
    """Where it begins, in percent of the bar."""
    width: float
    """How wide it is, in percent of the bar."""


def render_html(report: Report) -> str:
    """Return a self-contained page, some tens of kilobytes, light or dark as the reader's system is.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_report
    >>> page = render_html(make_report(make_job("labels.jsonl"), JobStore("work", "demo")))
    >>> "3 rows are in the output" in page
    True
    """
    missing = report.rows_in - report.rows_out - report.rows_quarantined
    return load_template("report.html.jinja").render(
        report=report,
        missing=missing,
        phases=divide_run(report),
        bars=[divide_stage(stage, report.running_seconds) for stage in report.stages],
        waste=1 - report.tokens / report.padded_tokens if report.padded_tokens else 0.0,
        token_rate=report.tokens / report.running_seconds if report.running_seconds > 0 else 0.0,
        ticks=mark_axis(report.seconds),
    )


def load_template(name: str) -> jinja2.Template:
    """Return a template of this folder, with the filters that all of them use.

    Examples
    --------
    >>> load_template("gate.html.jinja").name
    'gate.html.jinja'
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "duration": format_duration,
        "digest": shorten,
    }
    return environment.get_template(name)


def divide_run(report: Report) -> list[Slice]:
    """Return how the whole run divides into start, work and the rest.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_report
    >>> slices = divide_run(make_report(make_job("labels.jsonl"), JobStore("work", "demo")))
    >>> [(slice.name, slice.seconds, slice.width) for slice in slices]
    [('starting', 1.0, 50.0), ('running', 1.0, 50.0), ('finishing', 0.0, 0.0)]
    """
    rest = max(0.0, report.seconds - report.startup_seconds - report.running_seconds)
    return _stack({"starting": report.startup_seconds, "running": report.running_seconds, "finishing": rest})


def divide_stage(stage: StageReport, running: float) -> list[Slice]:
    """Return how the running time of a stage's workers divides.

    Parameters
    ----------
    stage
        One stage.
    running
        Seconds that the run's pipeline was up.

    Examples
    --------
    >>> stage = StageReport.model_construct(compute=3.0, receive=0.5, send=0.5, busy=0.5, workers=("tcp://a:1",))
    >>> [(slice.name, slice.width) for slice in divide_stage(stage, running=8.0)]
    [('compute', 37.5), ('receive', 6.25), ('send', 6.25), ('idle', 50.0)]
    """
    spent = stage.compute + stage.receive + stage.send
    whole = spent / stage.busy if stage.busy > 0 else len(stage.workers) * running
    parts = {"compute": stage.compute, "receive": stage.receive, "send": stage.send}
    return _stack({**parts, "idle": max(0.0, whole - spent)})


def mark_axis(seconds: float) -> list[tuple[float, str]]:
    """Return a handful of round times, each with its place on the axis in percent.

    Examples
    --------
    >>> mark_axis(2)
    [(0.0, '0 ms'), (25.0, '500 ms'), (50.0, '1.0 s'), (75.0, '1.5 s'), (100.0, '2.0 s')]
    """
    if seconds <= 0:
        return []
    steps = [base * 10**power for power in range(-3, 7) for base in (1, 2, 5)]
    step = next((step for step in steps if seconds / step <= 6), seconds)
    return [(100 * i * step / seconds, format_duration(i * step)) for i in range(int(seconds / step) + 1)]


def _stack(parts: dict[str, float]) -> list[Slice]:
    whole = sum(parts.values())
    slices: list[Slice] = []
    start = 0.0
    for name, seconds in parts.items():
        width = 100 * seconds / whole if whole > 0 else 0.0
        slices.append(Slice(name, seconds, start, width))
        start += width
    return slices
