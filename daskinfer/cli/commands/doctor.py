"""`doctor`: is a store safe to use?"""

from __future__ import annotations

import click

from daskinfer.cli.options import json_option
from daskinfer.cli.output.console import print_json


@click.command()
@click.argument("url")
@json_option
@click.pass_context
def doctor(ctx: click.Context, url: str, as_json: bool) -> None:
    """Find out whether registries, jobs and outputs are safe on the store behind URL.

    Writers race for one object, answers are lost, a large object is watched while it is written. What is written is
    removed. Exit code 1 says that the store must not be used.

    \b
    Examples:
      daskinfer doctor s3://bucket/daskinfer
      daskinfer doctor /mnt/shared
    """
    from daskinfer import api
    from daskinfer.cli.output.storeview import print_examination

    report = api.examine_store(url)
    if as_json:
        print_json(report)
    else:
        print_examination(report)
    if not report.safe:
        ctx.exit(1)
