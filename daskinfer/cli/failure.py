"""How a failed command ends: one message, what to do next, and an exit code."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from daskinfer.errors import DaskinferError, Interrupted, MissingEvent, RecipeError, RejectBudgetExceeded
from daskinfer.redaction import conceal
from daskinfer.units import escape_controls

RESUMABLE = (1, 4, 130)

EXIT_CODES = """\b
Exit codes:
  0    done; quarantined rows within the budget are named
  1    the job failed; the same command resumes it
  2    the recipe or the arguments are wrong
  3    the plan cannot fit the workers
  4    stopped: more rows were quarantined than the recipe allows;
       with a larger errors.max_rows it goes on
  130  interrupted; the same command resumes it
"""

_KEY = "daskinfer.circumstances"


@dataclass
class Circumstances:
    """What a command tells in case it fails."""

    as_json: bool = False
    """Whether stdout must end with a JSON object."""
    resume: str | None = None
    """The command that goes on where this one stopped."""
    allow: str | None = None
    """The same where `errors.max_rows` is N, to be filled in."""
    facts: Callable[[], dict[str, Any]] = dict
    """More fields for the JSON object."""


def circumstances(ctx: click.Context) -> Circumstances:
    """Return the running command's own record."""
    found: Circumstances = ctx.meta.setdefault(_KEY, Circumstances())
    return found


def fail(ctx: click.Context, error: BaseException) -> int:
    """Say what went wrong and return the exit code."""
    known = _recognise(error)
    told = circumstances(ctx)
    facts = told.facts()
    # click strips colours in a pipe, but does not know NO_COLOR.
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_tell(known)}", err=True, color=color)
    if known.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {escape_controls(known.hint)}", err=True, color=color)
    resume = told.resume if known.exit_code in RESUMABLE and not known.recurs else None
    if isinstance(known, RejectBudgetExceeded) and told.allow:
        click.echo(
            f"Nothing that was committed is lost. To go on, with a number for N:\n  {conceal(told.allow)}", err=True
        )
    if resume:
        begun = "Nothing that was committed is lost. To resume:" if facts.get("job") else "To run it again:"
        click.echo(f"{begun}\n  {conceal(resume)}", err=True)
    if report := facts.get("report"):
        click.echo(f"What it did: {escape_controls(report)}", err=True)
    if told.as_json:
        end = {"code": known.exit_code, "error": known.message, "hint": known.hint}
        if told.resume:
            end["resume"] = resume
        click.echo(conceal(json.dumps(facts | end)))
    return known.exit_code


def _tell(error: DaskinferError) -> str:
    """Return the message, whose lines are all ours in a recipe's errors alone: a file's name may hold newlines."""
    message = escape_controls(error.message)
    return message if isinstance(error, RecipeError) else message.replace("\n", "\n  ")


@contextmanager
def told_warnings() -> Iterator[None]:
    """Say our own warnings as the errors are said: a line on stderr, without a place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", MissingEvent)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, MissingEvent):
                click.echo(
                    f"{click.style('warning:', fg='yellow', bold=True)} {escape_controls(str(message))}", err=True
                )
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = tell
        yield


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or what a library made of one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _recognise(error: BaseException) -> DaskinferError:
    if isinstance(error, DaskinferError):
        return error
    if _is_interrupt(error):
        return Interrupted("interrupted")
    try:
        with tempfile.NamedTemporaryFile("w", prefix="daskinfer-bug-", suffix=".txt", delete=False) as file:
            file.write(conceal("".join(traceback.format_exception(error))))
        hint = f"please report it with {file.name}"
    except OSError as full:
        hint = f"its traceback could not be written: {full.strerror}"
    what = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return DaskinferError(f"this is a bug in daskinfer: {what}", hint=hint)
