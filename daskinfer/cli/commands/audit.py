"""`audit`: what was decided about a registry, by whom, and whether that is the truth."""

from __future__ import annotations

from datetime import datetime

import click

from daskinfer.cli.failure import circumstances
from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.output.console import print_json

ACTIONS = ("publish", "yank", "alias", "lock", "collect", "sign")


@click.command()
@click.option("--since", metavar="TIME", help="Only events from this time on: 2026-11-25, or 2026-11-25T08:30 (UTC).")
@click.option("--by", metavar="PRINCIPAL", help="Only events of user@host, or of a user on any host.")
@click.option("--action", type=click.Choice(ACTIONS), help="Only events of this kind.")
@registry_option
@json_option
@click.pass_context
def audit(
    ctx: click.Context, since: str | None, by: str | None, action: str | None, registry: str, as_json: bool
) -> None:
    """Print who decided what about a registry, by time, and verify all of it.

    Every publish, alias move, lock, deletion and signature wrote an event. Each event carries the digest of its record
    and of the event before it: what was changed, deleted or inserted is named, and the exit code is then 1. A record
    without an event, as a crash leaves it, is a warning.

    \b
    Examples:
      daskinfer audit
      daskinfer audit --action alias --since 2026-11-01 --registry s3://bucket/registry
      daskinfer audit --by ann --json | jq .findings
    """
    start = None if since is None else _parse(since)
    from daskinfer import api
    from daskinfer.cli.output.evidence import print_trail
    from daskinfer.errors import IntegrityError

    trail = api.audit(registry, since=start, by=by, action=action)
    facts = trail.model_dump(mode="json")
    if not as_json:
        print_trail(trail)
    if trail.broken:
        circumstances(ctx).facts = lambda: facts
        first = trail.broken[0]
        raise IntegrityError(
            f"{len(trail.broken)} finding(s) show that registry {trail.registry} was changed; the first: "
            f"{first.where}: {first.what}",
            hint="Find out who could write there; restore the object from a backup or from the bucket's versions.",
        )
    if as_json:
        print_json(trail)


def _parse(since: str) -> datetime:
    try:
        return datetime.fromisoformat(since)
    except ValueError:
        raise click.BadParameter(f"{since!r} is not a time; write 2026-11-25 or 2026-11-25T08:30") from None
