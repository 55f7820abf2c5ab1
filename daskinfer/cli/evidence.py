"""Rights, events and signatures as text on stdout."""

from __future__ import annotations

from collections.abc import Iterable

import click

from daskinfer.spec.trust import RoleRow


def print_roles(roles: Iterable[RoleRow]) -> None:
    """Print where each role writes."""
    for role in roles:
        click.echo(f"{click.style(role.name, bold=True)}  {role.purpose}")
        for verb, patterns in (("creates", role.create), ("replaces", role.replace), ("deletes", role.delete)):
            if patterns:
                click.echo(f"  {verb:<9} {' '.join(patterns)}")
    click.echo("everyone   reads everything")
