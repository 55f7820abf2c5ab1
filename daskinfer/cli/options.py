"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from daskinfer.cli.failure import circumstances
from daskinfer.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])


_LOGS = "daskinfer.logs"


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


def _note_log(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    ctx.meta.setdefault(_LOGS, {})[parameter.name] = value


def log_options(command: Command) -> Command:
    """Add the options that say how a job's log records are written; `start_logging` does what they say."""
    for name, kind, text in (
        ("--log-level", click.Choice(["info", "debug"]), "debug tells of every microbatch; info is the default."),
        ("--log-format", click.Choice(["text", "json"]), "Write log records as text or JSON, a line each."),
        (
            "--log-file",
            click.Path(dir_okay=False, resolve_path=True),
            "Append log records to FILE, those of local workers too; stderr by default, once any of these is given.",
        ),
    ):
        metavar = "FILE" if name == "--log-file" else None
        option = click.option(name, type=kind, help=text, metavar=metavar, callback=_note_log, expose_value=False)
        command = option(command)
    return command


def start_logging(ctx: click.Context) -> None:
    """Write log records from now on, if any of the options was given."""
    told = ctx.meta.get(_LOGS, {})
    file, format, level = (told.get(name) for name in ("log_file", "log_format", "log_level"))
    if file is format is level is None:
        return
    from daskinfer.logs import LogSettings, set_up_logging

    try:
        set_up_logging(LogSettings(format=format or "text", file=file, level=level or "info"))
    except OSError as error:
        raise UsageError(
            f"--log-file: {file} cannot be written: {error.strerror}", hint="Name a file in a folder that is there."
        ) from error
