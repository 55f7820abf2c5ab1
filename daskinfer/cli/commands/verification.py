"""`verify`: whether a finished output is still what was committed."""

from __future__ import annotations

import click

from daskinfer.cli.failure import circumstances
from daskinfer.cli.options import json_option, workspace_option
from daskinfer.cli.output.plain_text import tell
from daskinfer.units import format_amount


@click.command()
@click.argument("job")
@workspace_option
@json_option
@click.pass_context
def verify(ctx: click.Context, job: str, workspace: str, as_json: bool) -> None:
    """Compare the output of JOB with its manifest, byte by byte.

    Every part is read and its digest compared, and its rows and quarantined rows are counted. The exit code is 1 where
    anything is missing or differs, or lies among the parts and is none; nothing is changed.

    \b
    Examples:
      daskinfer verify embed-news-3f9a1c
      daskinfer verify embed-news-3f9a1c --json | jq .damaged
    """
    from daskinfer import api
    from daskinfer.cli.output.transfer import StepDisplay
    from daskinfer.errors import IntegrityError

    with StepDisplay(job) as show:
        found = api.verify_output(job, workspace, lambda done, total: show("reading parts", done, total))
    facts = found.model_dump(mode="json")
    if found.damaged:
        circumstances(ctx).facts = lambda: facts
        first = found.damaged[0]
        raise IntegrityError(
            f"{len(found.damaged):,} of {found.parts:,} parts of {found.output} are not what job {found.job} committed; "
            f"the first: {first.problem}",
            hint="Put the files back, or compute the output again: daskinfer run RECIPE --fresh",
        )
    if found.strays:
        circumstances(ctx).facts = lambda: facts
        raise IntegrityError(
            f"{format_amount(len(found.strays), 'file')} among the parts of {found.output} are not of job {found.job}; the first: "
            f"{found.strays[0]}",
            hint="Move them away: whoever reads the folder takes them for rows of the output.",
        )
    if as_json:
        click.echo(found.model_dump_json())
        return
    tell(
        f"{found.output}: {format_amount(found.rows_out, 'row')} and {found.rows_quarantined:,} quarantined rows in {found.parts:,} "
        f"parts are what job {found.job} committed"
    )
    tell(f"snapshots: {', '.join(found.snapshots)}")
