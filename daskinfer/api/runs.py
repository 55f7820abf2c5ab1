"""Jobs: run and validate."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from daskinfer.reports.gate import render_gate
from daskinfer.reports.page import render_html
from daskinfer.runtime.cluster.connection import find_workers
from daskinfer.runtime.jobs.job_resolution import check_places, draft_job, find_owner, open_job
from daskinfer.runtime.jobs.multi_driver import refuse_changes
from daskinfer.runtime.jobs.run_report import make_report
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.jobs.whole_job import WholeJob
from daskinfer.runtime.snapshots.gate_verdict import read_gate
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.loader import RecipeSource, read_recipe
from daskinfer.storage.jobs.lease import refuse_held
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.owner import current_owner
from daskinfer.units import format_amount


def run(
    recipe: RecipeSource,
    *,
    fresh: bool = False,
    join: bool = False,
    watch: Callable[[Progress], None] | None = None,
    command: str = "",
) -> Report:
    r"""Run a recipe to its end, going on with an unfinished job where there is one.

    Parameters
    ----------
    recipe
        What to run: a path, YAML text, a mapping of keys, or a `Recipe`.
    fresh
        Start over, whatever the output holds.
    join
        Run it together with whoever else does, each on a cluster of its own.
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
        Its class says why the run stopped, `exit_code` what a command should end with. Everything committed stays,
        and a report is written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = make_tiny_bert(Path("tiny"), layers=2)
    >>> _ = Path("rows.jsonl").write_text('{"text": "a small cat"}\n' * 3)
    >>> parts = {"model": {"checkpoint": str(folder)}, "input": {"url": "rows.jsonl"}, "output": {"url": "rows.zarr"}}
    >>> recipe = {"daskinfer": 1, "name": "demo", "cluster": {"local": {"workers": 1, "tls": False}}, **parts}
    >>> report = run(recipe)
    >>> report.verdict, report.rows_out
    ('done', 3)
    >>> run(recipe) == report
    True
    """
    recipe = read_recipe(recipe)
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    tell = watch or (lambda progress: None)
    tell(Progress(phase="preparing"))
    if join:
        refuse_changes(recipe)
    workers = find_workers(recipe.cluster, lambda line: tell(Progress(phase="preparing", message=line)))
    job = open_job(recipe, workers, fresh)
    if job.done and (report := job.store.reports.last()) is not None:
        return report
    session = RunSession(job, recipe, WholeJob(job), tell, began, join)
    session.run()
    report = make_report(session, command, time.monotonic() - began, started)
    _save_report(job.store, session, report)
    if (gate := read_gate(job.store.url)) is not None:
        job.store.reports.save_gate_page(render_gate(gate))
    if session.error is not None:
        raise session.error
    job.store.finish()
    return report


def _save_report(store: JobStore, session: RunSession, report: Report) -> None:
    """Store what a run did; a member stores the job's report too where it is the first to end it, or the last to leave."""
    if session.error is not None and not report.rows_this_run and _tells_more(store.reports.last(session.member)):
        return  # what went wrong is said on the spot; what an earlier run did would be lost
    page, member = render_html(report), session.member
    if member:
        store.reports.save(report, page, member)
    if not member or (store.state() != "done" if session.error is None else not store.others(member)):
        store.reports.save(report, page)


def _tells_more(earlier: Report | None) -> bool:
    """Whether an earlier report is of a run that computed something."""
    return earlier is not None and earlier.rows_this_run > 0


def validate(recipe: RecipeSource) -> list[str]:
    """Check a recipe against the world without running it: input, checkpoint, task, workers, output.

    Parameters
    ----------
    recipe
        As of `run`.

    Returns
    -------
    list of str
        What was found, a line each.

    Raises
    ------
    DaskinferError
        Whatever would stop the run before it begins.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("rows.jsonl").write_text('{"text": "a small cat"}')
    >>> parts = {"model": {"checkpoint": "tiny@prod"}, "input": {"url": "rows.jsonl"}, "output": {"url": "rows.zarr"}}
    >>> validate({"daskinfer": 1, "name": "demo", **parts})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: no checkpoint is named 'tiny' in registry .../work/registry
    The registry is empty: daskinfer checkpoint publish NAME DIR
    """
    recipe = read_recipe(recipe)
    check_places(recipe)
    alone: list[str] = []
    workers = find_workers(recipe.cluster, alone.append)
    draft, table = draft_job(recipe, workers)
    current_owner(draft.output)  # refuses files of strangers
    resolution, plan = draft.resolution, draft.plan
    written = ", ".join(f"{field.name} {field.kind}{list(field.shape) or ''}" for field in draft.fields)
    lines = [
        f"input: {format_amount(table.rows, 'row')} of {table.format} in {len(table.files)} file(s), {format_amount(len(table.partitions), 'partition')}",
        f"checkpoint: {resolution.reference} is {resolution.snapshot}",
        f"plan: {plan.explain()}",
        f"microbatches: {plan.sharing.describe()}",
        f"precision: {draft.precision}",
        *([f"linear layers: {draft.kernels}"] if draft.kernels else []),
        *([f"length: {draft.length}"] if draft.length else []),
        *([f"left out: {draft.left_out}"] if draft.left_out else []),
        f"output: {written}{''.join(f', {name}' for name in recipe.output.keep)}",
        *alone,
    ]
    owner = find_owner(recipe, workers)  # refuses another job's
    if owner is not None:
        if not owner.done:
            refuse_held(owner.store.url)
        lines.append(f"job: {owner.record.job} {'is done already' if owner.done else 'would go on'}")
    return lines
