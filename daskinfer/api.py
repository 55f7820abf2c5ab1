"""run, validate, inspect: the one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from daskinfer.reports.html import render_html
from daskinfer.runtime.opening import open_job
from daskinfer.runtime.session import Session
from daskinfer.spec.job import Progress, Report
from daskinfer.spec.recipe import Recipe

Verdict = Literal["done", "failed", "interrupted", "over budget"]


def run(
    recipe: Recipe, *, fresh: bool = False, watch: Callable[[Progress], None] | None = None, command: str = ""
) -> Report:
    """Run a recipe to its end, going on with an unfinished job where there is one.

    Parameters
    ----------
    recipe
        What to run.
    fresh
        Start over, whatever the output holds.
    watch
        Called with the progress, a few times a second.
    command
        What the user typed; the report names it as the way to run or resume the job.

    Returns
    -------
    Report
        What was done; at once, where the job is finished already.

    Raises
    ------
    DaskinferError
        Its class says why it stopped, `exit_code` what a command should end with. Everything committed stays, and a
        report is written.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    tell = watch or (lambda progress: None)
    tell(Progress(phase="preparing"))
    job = open_job(recipe, _find_workers(recipe), fresh)
    if job.done:
        return job.store.report()
    session = Session(job, recipe, tell, began)
    session.run()
    report = _make_report(session, command, began, started)
    job.store.save_report(report, render_html(report))
    if session.error is not None:
        raise session.error
    job.store.finish()
    return report
