"""The command group, and the one place where an error becomes an exit code."""

from __future__ import annotations

from typing import Any

import click

from daskinfer.cli.checkpoints.group import checkpoint
from daskinfer.cli.commands.audit import audit
from daskinfer.cli.commands.cluster import cluster
from daskinfer.cli.commands.comparison import compare
from daskinfer.cli.commands.control import cancel, drain
from daskinfer.cli.commands.doctor import doctor
from daskinfer.cli.commands.jobs import jobs, report, status
from daskinfer.cli.commands.profile import profile
from daskinfer.cli.commands.recipes import schema, validate
from daskinfer.cli.commands.retry import retry
from daskinfer.cli.commands.run import run
from daskinfer.cli.commands.verification import verify
from daskinfer.cli.failure import EXIT_CODES, fail, told_warnings
from daskinfer.cli.interruption import hear_no_more, interrupting, is_program
from daskinfer.cli.output.console import patient_streams
from daskinfer.cli.output.silence import breaking_silence

# Nobody's typing mistake is to be corrected into the loss of results.
_DISCARDING = {"--fresh"}

_HELP = """Batch inference on Dask: a model checkpoint over a dataset, on one locked checkpoint version.

\b
Examples:
  daskinfer checkpoint publish minilm ./all-MiniLM-L6-v2 --alias prod
  daskinfer validate recipe.yaml
  daskinfer run recipe.yaml
"""


class _Program(click.Group):
    def main(self, *args: Any, **more: Any) -> Any:
        """Run as a program whose console may be anything."""
        if not is_program():
            with patient_streams():
                return super().main(*args, **more)
        try:
            with interrupting(), patient_streams() as silence, breaking_silence(silence):
                return super().main(*args, **more)
        finally:
            hear_no_more()

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever goes wrong is said once and becomes an exit code."""
        try:
            with told_warnings():
                return super().invoke(ctx)
        except click.NoSuchOption as error:
            offered = [name for name in error.possibilities or () if name not in _DISCARDING]
            raise click.NoSuchOption(error.option_name, possibilities=offered, ctx=error.ctx) from None
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
            ctx.exit(fail(ctx, error))


def make_group(name: str) -> click.Group:
    """Return all commands under a group of this name."""
    group = _Program(name, help=_HELP, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
    running = (run, retry, validate, schema, status, jobs, report, verify, cancel, drain)
    for command in (*running, cluster, doctor, profile, compare, checkpoint, audit):
        group.add_command(command)
    return click.version_option(package_name="daskinfer", prog_name="daskinfer")(group)


main = make_group("daskinfer")
