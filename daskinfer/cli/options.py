"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from daskinfer.cli.failure import circumstances

Command = TypeVar("Command", bound=Callable[..., Any])


def _note_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    circumstances(ctx).as_json = value
    return value


recipe_argument = click.argument("recipe", type=click.Path())

set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a key of the recipe, e.g. pipeline.stages=3; the value is YAML. May be repeated.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_note_json,
    is_eager=True,
    help="Print one JSON object, last on stdout.",
)

workspace_option = click.option(
    "--workspace",
    metavar="URL",
    default="./work",
    envvar="DASKINFER_WORKSPACE",
    show_default=True,
    show_envvar=True,
    help="Where the jobs are recorded.",
)

registry_option = click.option(
    "--registry",
    metavar="URL",
    default="./work/registry",
    envvar="DASKINFER_REGISTRY",
    show_default=True,
    show_envvar=True,
    help="Where the checkpoints are.",
)
