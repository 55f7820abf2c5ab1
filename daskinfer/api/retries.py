"""Retries: the quarantined rows of a job, computed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from daskinfer.errors import RecipeError
from daskinfer.reports.page import render_html
from daskinfer.runtime.cluster.connection import find_workers
from daskinfer.runtime.jobs.input_correction import InputCorrection
from daskinfer.runtime.jobs.job_resolution import reopen_job
from daskinfer.runtime.jobs.retry_report import make_finish_report, make_retry_report, refresh_report
from daskinfer.runtime.jobs.retry_round import RetryRound
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.jobs.whole_job import WholeJob
from daskinfer.spec.job.record import JobRecord, Progress
from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.loader import override_recipe
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.jobs.store import JobStore, find_job
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.job_output import check_record, open_fence
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.retry_rounds import clear_supplements, next_round


def retry(
    job: str,
    workspace: str,
    *,
    overrides: Sequence[str] = (),
    watch: Callable[[Progress], None] | None = None,
    command: str = "",
) -> Report | None:
    """Compute the quarantined rows of a job again, and merge those that come out into its output, exactly once.

    A retry that was interrupted is gone on with. A job that stopped is finished on its input as it is now, its
    quarantined rows included.

    Parameters
    ----------
    job
        Job id, or the beginning of one.
    workspace
        URL of its workspace.
    overrides
        `key.path=value` for keys that do not change the output: cluster, placement, errors.max_rows ...
    watch
        Called with the progress, a few times a second.
    command
        What the user typed; the report names it.

    Returns
    -------
    Report or None
        What was done; `retries` has one entry. None where nothing is quarantined.

    Raises
    ------
    DaskinferError
        Its class says why the retry stopped; the output is as it was, or the same call goes on with the merging.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", refused=[])
    >>> retry("demo", "work") is None
    True
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    tell = watch or (lambda progress: None)
    tell(Progress(phase="preparing"))
    store = find_job(workspace, job)
    record = store.record()
    state = store.state()
    if state == "replaced":
        confirm(record.output, record.job)  # says by whom
    recipe = _change_recipe(record, workspace, overrides)
    confirm(record.output, record.job)
    check_record(store, record)
    if state != "done":
        workers = find_workers(recipe.cluster, lambda line: tell(Progress(phase="preparing", message=line)))
        opened = replace(reopen_job(store, recipe, workers), done=False)
        correction = InputCorrection(opened)
        rest = RunSession(opened, recipe, WholeJob(opened, correction), tell, began)
        rest.run()
        report = make_finish_report(rest, correction, command, time.monotonic() - began, started)
        (share,) = report.retries
        kept = report if share.rows_retried else report.model_copy(update={"retries": ()})
        store.reports.save(kept, render_html(kept))
        if rest.error is not None:
            raise rest.error
        store.finish()
        return report
    round = next_round(absolute_url(record.output), record.job)
    if not round.parts:
        _refresh(store)  # a driver may have died after its last step but this
        clear_supplements(open_fence(record, workspace), round.number - 1)
        return None
    workers = find_workers(recipe.cluster, lambda line: tell(Progress(phase="preparing", message=line)))
    opened = reopen_job(store, recipe, workers)
    work = RetryRound(opened, round)
    session = RunSession(opened, recipe, work, tell, began)
    session.run()
    report = make_retry_report(session, work, command, time.monotonic() - began, started)
    store.reports.save_retry(work.round.number, report, render_html(report))
    _refresh(store)
    if session.error is not None:
        raise session.error
    return report


def _refresh(store: JobStore) -> None:
    before, now = store.reports.last(), refresh_report(store)
    if now is not None and now != before:
        store.reports.save(now, render_html(now))


def _change_recipe(record: JobRecord, workspace: str, overrides: Sequence[str]) -> Recipe:
    """Return the job's recipe with what the user changes; nothing that could change the output may be."""
    recipe = override_recipe(record.recipe, overrides).model_copy(update={"workspace": absolute_url(workspace)})
    if recipe.digest != record.recipe.digest:
        raise RecipeError(
            f"--set {' '.join(overrides)}: a retry cannot change what decides the rows of job {record.job}",
            hint="A retry takes keys of cluster, placement and recovery, errors.max_rows, errors.microbatch_seconds and "
            "pipeline.window. To change other keys, start another job.",
        )
    return recipe
