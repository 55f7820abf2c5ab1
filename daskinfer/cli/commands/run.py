"""`run`: the main job."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from daskinfer.cli.failure import EXIT_CODES, circumstances, fail
from daskinfer.cli.interruption import ending_at_once, interrupting
from daskinfer.cli.options import json_option, log_options, recipe_argument, set_option, start_logging

if TYPE_CHECKING:
    from daskinfer.spec.job.record import Progress
    from daskinfer.spec.recipe.schema import Recipe

# What a program may rely on, whether the run succeeds or fails.
_FIELDS = (
    "job",
    "snapshot",
    "rows_in",
    "rows_out",
    "rows_quarantined",
    "rows_truncated",
    "rows_not_finite",
    "seconds",
    "output",
    "report",
)


@click.command(epilog=EXIT_CODES)
@recipe_argument
@set_option
@click.option("--fresh", is_flag=True, help="Start over: discard what an earlier run of this job committed.")
@log_options
@click.option(
    "--join", is_flag=True, help="Share the job with other drivers started with --join, each on a cluster of its own."
)
@json_option
@click.pass_context
def run(ctx: click.Context, recipe: str, overrides: tuple[str, ...], fresh: bool, join: bool, as_json: bool) -> None:
    """Run RECIPE, or go on where its last run stopped.

    An unfinished job of the same recipe, inputs and code is resumed on the checkpoint version that it is locked
    on. A finished one is reported at once. Progress goes to stderr, the result to stdout.

    \b
    Examples:
      daskinfer run recipe.yaml
      daskinfer run recipe.yaml --set pipeline.stages=3 --set output.url=results/three.zarr
      daskinfer run recipe.yaml --join
      daskinfer run recipe.yaml --json | tail -n 1 | jq .rows_out
    """
    told = circumstances(ctx)
    told.facts = lambda: dict.fromkeys(_FIELDS) | {"verdict": "failed"}
    from daskinfer.spec.recipe.loader import load_recipe

    parsed = load_recipe(recipe, overrides)
    start_logging(ctx)
    told.resume = command = _command(ctx, recipe, overrides, join, as_json)
    told.allow = _command(ctx, recipe, allow_more(overrides), join, as_json)
    latest: list[Progress] = []
    began = datetime.now(UTC).isoformat(timespec="seconds")
    told.facts = lambda: _describe_failure(parsed, latest, began)
    from daskinfer.runtime.cluster.fork_server import start_imports, stop_imports

    def end() -> None:
        stop_imports()
        fail(ctx, KeyboardInterrupt())

    with ending_at_once(end):
        start_imports(parsed.cluster)  # beside all that this process imports
        from daskinfer import api
        from daskinfer.cli.output.progress import ProgressDisplay
        from daskinfer.cli.output.show import print_report

    # Reports tell time in whole seconds.
    with interrupting(), ProgressDisplay(parsed.name) as display:

        def watch(progress: Progress) -> None:
            latest[:] = [progress]
            display(progress)

        result = api.run(parsed, fresh=fresh, join=join, watch=watch, command=command)
    earlier = not any(progress.job for progress in latest)  # a run that finds its job done never names it
    display.end(result, earlier)
    if as_json:
        facts = {name: getattr(result, name) for name in _FIELDS}
        click.echo(json.dumps({**facts, "verdict": result.verdict, "code": 0, "already_done": earlier}))
    else:
        print_report(result, "already done, nothing to do" if earlier else None)


def _describe_failure(recipe: Recipe, latest: list[Progress], began: str) -> dict[str, Any]:
    """Return the promised fields of a run that began then and failed, as far as they are known."""
    facts: dict[str, Any] = dict.fromkeys(_FIELDS) | {"verdict": "failed", "output": recipe.output.url}
    if not latest or not latest[0].job:
        return facts
    from daskinfer import api

    (progress,) = latest
    facts |= {"job": progress.job, "rows_in": progress.rows_total, "rows_quarantined": progress.rows_quarantined}
    facts |= {"rows_truncated": progress.rows_truncated, "rows_not_finite": progress.rows_not_finite}
    facts |= {"rows_out": progress.rows_done - progress.rows_quarantined, "seconds": progress.seconds}
    # A second failure on the way out must not hide the first.
    with contextlib.suppress(Exception):
        report = api.report(progress.job, recipe.workspace, progress.member)
        # A driver that could not write its own report, or did nothing, leaves that of an earlier run.
        if report.verdict != "done" and report.started >= began:
            facts |= {name: getattr(report, name) for name in (*_FIELDS, "verdict")}
    return facts


def _command(ctx: click.Context, recipe: str, overrides: tuple[str, ...], join: bool, as_json: bool) -> str:
    """Return the command that resumes this one, ready for a shell."""
    words = [*tell_program(ctx), recipe]
    for override in overrides:
        words += ["--set", override]
    return shlex.join([*words, *(["--join"] if join else []), *(["--json"] if as_json else [])])


def allow_more(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return overrides with a budget of refused rows that whoever reads them fills in."""
    return (*(each for each in overrides if not each.startswith("errors.max_rows=")), "errors.max_rows=N")


def tell_program(ctx: click.Context) -> list[str]:
    """Return the words that a command line begins with."""
    program, *rest = ctx.command_path.split(" ")
    script = sys.executable if rest[:1] == ["-m"] else sys.argv[0]
    # The short name is right only where the shell would find the same program by it.
    if script.rpartition("/")[2].startswith(program) and shutil.which(program) != script:
        program = script
    return [program, *rest]
