"""`checkpoint locks` and `checkpoint gc`: who holds what, and deleting the rest."""

from __future__ import annotations

import json

import click

from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.output.console import print_json


@click.command()
@click.argument("reference", required=False)
@registry_option
@json_option
def locks(reference: str | None, registry: str, as_json: bool) -> None:
    """List who holds which version, or who holds REFERENCE.

    A job holds the version that it began with until it is done, even while it is stopped. The age of a heartbeat is
    what the store tells, for people: nothing is decided by it.

    \b
    Examples:
      daskinfer checkpoint locks
      daskinfer checkpoint locks minilm@v1
    """
    from daskinfer import api
    from daskinfer.cli.output.holdings import print_locks

    rows = api.locks(registry, reference)
    if as_json:
        found = [row.model_dump(mode="json") for row in rows]
        click.echo(json.dumps({"registry": registry, "locks": found}))
    else:
        print_locks(rows, reference or registry)


@click.command()
@click.option("--dry-run", is_flag=True, help="Delete nothing; say what would be deleted, and what keeps the rest.")
@click.option(
    "--keep-versions",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How many of the newest versions of every name to keep.",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Keep what was published in the last so many days.",
)
@click.option("--wait", is_flag=True, help="Watch the heartbeats of jobs that stand in the way, up to 15 minutes.")
@click.option("--assume-dead", metavar="JOB", multiple=True, help="This job is known to be dead. May be repeated.")
@registry_option
@json_option
def gc(
    dry_run: bool,
    keep_versions: int,
    keep_days: float,
    wait: bool,
    assume_dead: tuple[str, ...],
    registry: str,
    as_json: bool,
) -> None:
    """Delete the versions that nothing keeps, and what was left by publishes that were cut off.

    A version is kept by any alias that points at it, by being among the newest or young, and by every job that holds
    it. A job counts as alive unless you say that it is dead, or --wait finds that it is silent. Deleted versions cannot
    be restored.

    \b
    Examples:
      daskinfer checkpoint gc --dry-run
      daskinfer checkpoint gc --keep-versions 5 --keep-days 30
      daskinfer checkpoint gc --wait
      daskinfer checkpoint gc --assume-dead embed-news-3f9a1c0b
    """
    from daskinfer import api
    from daskinfer.cli.output.holdings import print_collection
    from daskinfer.cli.output.transfer import StepDisplay

    with StepDisplay("gc") as display:
        report = api.collect_garbage(
            registry,
            keep_versions=keep_versions,
            keep_days=keep_days,
            dry_run=dry_run,
            wait=wait,
            assume_dead=assume_dead,
            watch=display,
        )
    if as_json:
        print_json(report)
        return
    print_collection(report)
    if not wait and (report.waiting or any(row.holders for row in report.kept)):
        click.echo("Everybody counted as alive: --wait finds out who is, --assume-dead JOB says who is not.", err=True)
