"""`validate` and `schema`: recipes without running them."""

from __future__ import annotations

import json

import click

from daskinfer.cli.options import json_option, recipe_argument, set_option
from daskinfer.cli.output.plain_text import tell
from daskinfer.units import escape_line


@click.command()
@recipe_argument
@set_option
@json_option
def validate(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and what it names, without running it.

    Every mistake is shown with its line. Then the input must match, the checkpoint must resolve, the plan must fit
    the workers, and the output must be possible and no other job's: what `run` would refuse is refused here.

    \b
    Examples:
      daskinfer validate recipe.yaml
      daskinfer validate recipe.yaml --set pipeline.stages=3
    """
    from daskinfer import api
    from daskinfer.spec.recipe.loader import load_recipe

    parsed = load_recipe(recipe, overrides)  # before `api.validate` loads what a job needs: a mistake is told at once
    lines = api.validate(parsed)
    if as_json:
        click.echo(json.dumps({"recipe": recipe, "valid": True, "checks": lines}))
        return
    for line in lines:
        click.echo(escape_line(line))
    tell(f"{recipe} is valid")


@click.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors and checkers.

    \b
    Examples:
      daskinfer schema > recipe.schema.json
    and as the first line of a recipe:
      # yaml-language-server: $schema=./recipe.schema.json
    """
    from daskinfer.spec.recipe.loader import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
