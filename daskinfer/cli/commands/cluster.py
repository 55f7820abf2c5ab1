"""`cluster`: workers in the background, started before a run needs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from daskinfer.cli.options import json_option, set_option
from daskinfer.cli.output.console import print_json
from daskinfer.cli.output.plain_text import tell
from daskinfer.cli.output.waiting import waiting
from daskinfer.units import format_amount, format_duration

if TYPE_CHECKING:
    from daskinfer.spec.recipe.schema import LocalCluster


@click.group()
def cluster() -> None:
    """Keep the workers of a local cluster ready in the background, so that runs start at once.

    `run` and `retry` use them where they would start the same ones: the same `cluster.local`, working directory,
    environment and code. They serve one run at a time, and each run has fresh processes.

    \b
    Examples:
      daskinfer cluster start recipe.yaml
      daskinfer run recipe.yaml
      daskinfer cluster stop
    """


@cluster.command()
@click.argument("recipe", type=click.Path(), required=False)
@set_option
@click.option(
    "--idle-minutes",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="End when no run has come for so long.",
)
@json_option
def start(recipe: str | None, overrides: tuple[str, ...], idle_minutes: float, as_json: bool) -> None:
    """Start the workers that RECIPE asks for under `cluster.local`, or the default ones.

    \b
    Examples:
      daskinfer cluster start recipe.yaml
      daskinfer cluster start recipe.yaml --set cluster.local.workers=4 --idle-minutes 10
    """
    from daskinfer.errors import UsageError
    from daskinfer.spec.recipe.loader import load_recipe

    local = None
    if recipe is not None:
        asked = load_recipe(recipe, overrides).cluster
        if asked.address is not None:
            raise UsageError(
                f"{recipe} runs at cluster.address, whose workers are not started here",
                hint="Give a recipe with cluster.local, or none.",
            )
        local = asked.workers
    elif overrides:
        raise UsageError("--set changes a recipe, and none is given", hint="Name the recipe that will be run.")
    from daskinfer import api

    with waiting("starting workers") as watch:
        found = api.start_cluster(local, idle_minutes=idle_minutes, watch=watch)
    if as_json:
        print_json(found)
        return
    tell(
        f"ready: {_describe(found.local)}, for runs from {found.folder}; without one for {found.idle_minutes:g} min they end"
    )


@cluster.command()
@click.option("--now", is_flag=True, help="Also where a run uses them; it goes on with workers of its own.")
@json_option
def stop(now: bool, as_json: bool) -> None:
    """End the workers in the background.

    \b
    Examples:
      daskinfer cluster stop
      daskinfer cluster stop --now
    """
    from daskinfer import api

    with waiting("stopping workers") as watch:
        was_there = api.stop_cluster(now=now, watch=watch)
    if as_json:
        click.echo(json.dumps({"stopped": was_there}))
    else:
        tell("stopped" if was_there else "no background cluster is there")


@cluster.command()
@json_option
def status(as_json: bool) -> None:
    """Show what the workers in the background do.

    \b
    Examples:
      daskinfer cluster status
      daskinfer cluster status --json
    """
    from daskinfer import api

    found = api.cluster_status()
    if as_json:
        click.echo(json.dumps(None if found is None else found.model_dump()))
        return
    if found is None:
        tell("no background cluster is there; start one: daskinfer cluster start")
        return
    state = f"{found.state} for {format_duration(found.seconds)}"
    lines = {
        "state": state + (f", used by process {found.user}" if found.user else ""),
        "workers": _describe(found.local),
        "folder": found.folder,
        "runs": f"{found.runs:,}",
        "ends": f"after {found.idle_minutes:g} min without a run",
        "process": str(found.pid),
    }
    for name, value in lines.items():
        tell(f"{name:<8} {value}")


def _describe(local: LocalCluster) -> str:
    return f"{format_amount(local.workers, 'worker')} with {format_amount(local.threads, 'thread')}"
