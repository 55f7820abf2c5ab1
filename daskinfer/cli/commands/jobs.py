"""`status`, `jobs` and `report`: what jobs do and did, read from storage."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from daskinfer.cli.failure import circumstances
from daskinfer.cli.options import json_option, workspace_option
from daskinfer.cli.output.console import print_json
from daskinfer.errors import DaskinferError, IntegrityError

if TYPE_CHECKING:
    from daskinfer.spec.job.record import JobStatus


@click.command()
@click.argument("job")
@workspace_option
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@json_option
def status(job: str, workspace: str, watch: bool, as_json: bool) -> None:
    """Show how JOB stands.

    \b
    Examples:
      daskinfer status embed-news-3f9a1c
      daskinfer status embed-news-3f9a1c --watch
    """
    from daskinfer import api
    from daskinfer.cli.output.show import print_status

    found = api.status(job, workspace)
    if watch and found.state == "running":
        found = _follow(found, workspace)
    if as_json:
        print_json(found)
    else:
        print_status(found)


def _follow(found: JobStatus, workspace: str) -> JobStatus:
    from daskinfer import api
    from daskinfer.cli.output.progress import ProgressDisplay
    from daskinfer.spec.job.record import Progress

    with ProgressDisplay(found.name) as display:
        while found.state == "running":
            counted = {"rows_total": found.rows_total, "rows_done": found.rows_done}
            progress = found.progress or Progress(phase="running", job=found.job)
            display(progress.model_copy(update=counted))
            time.sleep(1)
            found = api.status(found.job, workspace)
    return found


@click.command()
@workspace_option
@json_option
@click.pass_context
def jobs(ctx: click.Context, workspace: str, as_json: bool) -> None:
    """List the jobs of a workspace, newest first.

    Jobs whose records are damaged are named after the others, and end it with exit code 1.

    \b
    Examples:
      daskinfer jobs
      daskinfer jobs --workspace s3://bucket/work --json
    """
    from daskinfer import api
    from daskinfer.cli.output.show import print_jobs

    damaged: list[DaskinferError] = []
    found = api.jobs(workspace, damaged.append)
    facts = {"workspace": workspace, "jobs": [job.model_dump(mode="json") for job in found]}
    if not as_json:
        print_jobs(found, workspace)
    elif not damaged:
        click.echo(json.dumps(facts))
    if damaged:
        circumstances(ctx).facts = lambda: facts
        raise _join_errors(damaged)


def _join_errors(errors: Sequence[DaskinferError]) -> DaskinferError:
    """Return one error that tells of all of them."""
    messages = [error.message for error in errors]
    return IntegrityError("; ".join(messages), hint=errors[0].hint) if len(errors) > 1 else errors[0]


@click.command()
@click.argument("job")
@workspace_option
@click.option("--html", "page", type=click.Path(dir_okay=False), help="Write the report as one HTML file.")
@json_option
def report(job: str, workspace: str, page: str | None, as_json: bool) -> None:
    """Show what JOB did.

    \b
    Examples:
      daskinfer report embed-news-3f9a1c
      daskinfer report embed-news-3f9a1c --html report.html
    """
    from daskinfer import api
    from daskinfer.cli.output.pages import write_page
    from daskinfer.cli.output.show import print_report
    from daskinfer.reports.page import render_html

    found = api.report(job, workspace)
    if page is not None:
        write_page(page, render_html(found))
    if as_json:
        print_json(found)
    elif page is None:
        print_report(found)
