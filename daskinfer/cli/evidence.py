"""Rights, events and signatures as text on stdout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import click

from daskinfer.cli.plain_text import tell
from daskinfer.ids import shorten
from daskinfer.spec.trust import AuditTrail, RoleRow, SignatureRow
from daskinfer.units import escape_controls

_WORDS = {True: "valid", False: "of another key", None: "not verified"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def print_roles(roles: Iterable[RoleRow]) -> None:
    """Print where each role writes."""
    for role in roles:
        click.echo(f"{click.style(role.name, bold=True)}  {role.purpose}")
        for verb, patterns in (("creates", role.create), ("replaces", role.replace), ("deletes", role.delete)):
            if patterns:
                click.echo(f"  {verb:<9} {' '.join(patterns)}")
    click.echo("everyone   reads everything")


def print_trail(trail: AuditTrail) -> None:
    """Print a line for each event, then what does not fit."""
    width = max((len(event.by) for event in trail.events), default=0)
    for event in trail.events:
        what = event.action if event.operation in (None, event.action) else f"{event.action} {event.operation}"
        digest = f"sha256:{shorten(event.digest)}"
        record = _DIGEST.sub(lambda digits: shorten(digits[0]), event.record)
        tell(f"{event.at}  {event.by:<{width}}  {what:<15}  {record}  {digest}")
    for finding in trail.findings:
        color = "red" if finding.severity == "broken" else "yellow"
        click.echo(
            f"{click.style(finding.severity + ':', fg=color, bold=True)} {escape_controls(finding.where)}: {escape_controls(finding.what)}"
        )
    shown = "" if len(trail.events) == trail.checked else f", {len(trail.events)} shown"
    click.echo(f"{trail.checked} events verified{shown}, {len(trail.broken)} broken")


def print_signatures(reference: str, rows: Sequence[SignatureRow]) -> None:
    """Print a line for each signature."""
    for row in rows:
        tell(f"{row.at}  {row.by}  key {shorten(row.key)}  {_WORDS[row.valid]}")
    if not rows:
        tell(f"{reference} is not signed")
