"""`retry`: the quarantined rows of a job, once more."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from daskinfer.cli.commands.run import allow_more, tell_program
from daskinfer.cli.failure import EXIT_CODES, circumstances, fail
from daskinfer.cli.interruption import ending_at_once, interrupting
from daskinfer.cli.options import json_option, log_options, set_option, start_logging, workspace_option

if TYPE_CHECKING:
    from daskinfer.spec.job.record import Progress
    from daskinfer.spec.job.report import Report

# What a program may rely on, whether the retry succeeds or fails.
_FIELDS = ("job", "rows_retried", "rows_recovered", "rows_quarantined", "seconds", "output", "report")


@click.command(epilog=EXIT_CODES)
@click.argument("job")
@workspace_option
@set_option
@log_options
@json_option
@click.pass_context
def retry(ctx: click.Context, job: str, workspace: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compute the quarantined rows of JOB again, and merge those that come out into its output.

    For after you have corrected what rows were refused for. A job that stopped, over its budget or otherwise, is finished on
    its input as it is now. Rows are computed on the checkpoint version of the job, and those that fail again stay in the
    quarantine. `--set` takes keys that do not change the
    output: cluster, placement, recovery, errors.max_rows, errors.microbatch_seconds, pipeline.window.

    \b
    Examples:
      daskinfer retry embed-news-3f9a1c
      daskinfer retry embed-news --set cluster.local.workers=1 --json
    """
    told = circumstances(ctx)
    told.facts = lambda: dict.fromkeys(_FIELDS) | {"verdict": "failed"}
    with ending_at_once(lambda: fail(ctx, KeyboardInterrupt())):
        from daskinfer import api
        from daskinfer.cli.output.progress import ProgressDisplay
        from daskinfer.cli.output.show import print_retry, stdout

    start_logging(ctx)
    told.resume = command = _command(ctx, job, workspace, overrides, as_json)
    told.allow = _command(ctx, job, workspace, allow_more(overrides), as_json)
    latest: list[Progress] = []
    told.facts = lambda: _describe_failure(latest)
    with interrupting(), ProgressDisplay(f"retry {job}") as display:

        def watch(progress: Progress) -> None:
            latest[:] = [progress]
            display(progress)

        result = api.retry(job, workspace, overrides=overrides, watch=watch, command=command)
    if result is None:
        status = api.status(job, workspace)
        if as_json:
            nothing = {"job": status.job, "rows_retried": 0, "rows_recovered": 0, "rows_quarantined": 0}
            facts = dict.fromkeys(_FIELDS) | nothing | {"seconds": 0.0, "output": status.output}
            click.echo(json.dumps(facts | {"verdict": "done", "code": 0}))
        else:
            stdout().print(f"nothing to retry: no row of job {status.job} is quarantined")
        return
    display.end(result, False)
    if as_json:
        click.echo(json.dumps({**_facts_of(result), "code": 0}))
    else:
        print_retry(result)


def _facts_of(report: Report) -> dict[str, Any]:
    (share,) = report.retries
    facts = {name: getattr(share if name.startswith("rows_re") else report, name) for name in _FIELDS}
    return facts | {"verdict": report.verdict}


def _describe_failure(latest: list[Progress]) -> dict[str, Any]:
    """Return the promised fields of a retry that failed, as far as they are known."""
    facts: dict[str, Any] = dict.fromkeys(_FIELDS) | {"verdict": "failed"}
    if not latest or not latest[0].job:
        return facts
    (progress,) = latest
    facts |= {"job": progress.job, "rows_retried": progress.rows_total, "rows_recovered": 0}
    return facts | {"rows_quarantined": progress.rows_quarantined, "seconds": progress.seconds}


def _command(ctx: click.Context, job: str, workspace: str, overrides: tuple[str, ...], as_json: bool) -> str:
    """Return this command, ready for a shell."""
    words = [*tell_program(ctx), job, "--workspace", workspace]
    for override in overrides:
        words += ["--set", override]
    return shlex.join([*words, "--json"] if as_json else words)
