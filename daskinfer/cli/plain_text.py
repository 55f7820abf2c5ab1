"""Lines of plain text, without what rich would cost a command that needs none."""

from __future__ import annotations

import click

from daskinfer.units import escape_controls


def tell(line: str, err: bool = False) -> None:
    """Print a line; control characters in it are seen and not obeyed."""
    click.echo(escape_controls(line), err=err)
