"""`cancel` and `drain`: asking something of a job that runs, by way of its workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daskinfer.cli.options import json_option, workspace_option
from daskinfer.cli.output.console import print_json
from daskinfer.cli.output.plain_text import tell
from daskinfer.cli.output.waiting import waiting

if TYPE_CHECKING:
    from daskinfer.spec.job.control import Outcome

no_wait_option = click.option("--no-wait", is_flag=True, help="Return at once; do not wait for the driver's answer.")


@click.command()
@click.argument("job")
@workspace_option
@no_wait_option
@json_option
def cancel(job: str, workspace: str, no_wait: bool, as_json: bool) -> None:
    """Stop the driver of JOB, wherever it runs.

    It stops as on Ctrl-C: everything committed stays, and the same `run` command resumes the job.

    \b
    Examples:
      daskinfer cancel embed-news-3f9a1c
      daskinfer cancel embed-news-3f9a1c --workspace s3://bucket/work --no-wait
    """
    from daskinfer import api

    with waiting("asking the driver") as watch:
        outcome = api.cancel(job, workspace, wait=not no_wait, watch=watch)
    _print(outcome, "cancelled", as_json)


@click.command()
@click.argument("job")
@click.argument("worker")
@workspace_option
@no_wait_option
@json_option
def drain(job: str, worker: str, workspace: str, no_wait: bool, as_json: bool) -> None:
    """Take WORKER off JOB without losing work.

    WORKER gets nothing new of the job and finishes what it has in work. Where it is the last one of its stage, another
    worker takes the stage over first. `daskinfer status JOB` shows the workers; an address, a name, or the beginning of
    one names them. Other jobs may go on using WORKER; this one never will.

    \b
    Examples:
      daskinfer drain embed-news-3f9a1c 10.0.0.7:40123
      daskinfer drain embed-news-3f9a1c gpu-node-7 --no-wait
    """
    from daskinfer import api

    with waiting("asking the driver") as watch:
        outcome = api.drain(job, worker, workspace, wait=not no_wait, watch=watch)
    _print(outcome, "drained", as_json)


def _print(outcome: Outcome, done: str, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    elif outcome.answered:
        tell(f"{done}: {outcome.detail}")
    else:
        tell(f"asked; see what becomes of it: daskinfer status {outcome.job}")
