"""`checkpoint`: publish, list, show, alias."""

from __future__ import annotations

import json

import click

from daskinfer.cli.options import json_option, registry_option


@click.group()
def checkpoint() -> None:
    """Publish checkpoints and name their versions.

    A published version never changes: its digest is its name. An alias such as prod is a name that can be moved
    to another version.

    \b
    Examples:
      daskinfer checkpoint publish minilm ./all-MiniLM-L6-v2 --alias prod
      daskinfer checkpoint list
    """


@checkpoint.command()
@click.argument("name")
@click.argument("directory", type=click.Path())
@click.option("--alias", help="Point this alias at the new version.")
@registry_option
@json_option
def publish(name: str, directory: str, alias: str | None, registry: str, as_json: bool) -> None:
    """Publish the checkpoint in DIRECTORY as a version of NAME.

    \b
    Examples:
      daskinfer checkpoint publish minilm ./all-MiniLM-L6-v2 --alias prod
    """
    from daskinfer import api
    from daskinfer.cli.show import print_resolution

    found = api.publish(name, directory, registry=registry, alias=alias)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        print_resolution("published", found, alias)


@checkpoint.command("list")
@registry_option
@json_option
def list_(registry: str, as_json: bool) -> None:
    """List the checkpoints of a registry.

    \b
    Examples:
      daskinfer checkpoint list
      daskinfer checkpoint list --registry s3://bucket/registry
    """
    from daskinfer import api
    from daskinfer.cli.show import print_checkpoints

    rows = api.checkpoints(registry)
    if as_json:
        found = [row.model_dump(mode="json") for row in rows]
        click.echo(json.dumps({"registry": registry, "checkpoints": found}))
    else:
        print_checkpoints(rows, registry)


@checkpoint.command()
@click.argument("reference")
@registry_option
@json_option
def show(reference: str, registry: str, as_json: bool) -> None:
    """Show the snapshot that REFERENCE means, and its versions and aliases.

    \b
    Examples:
      daskinfer checkpoint show minilm@prod
      daskinfer checkpoint show minilm@v3
    """
    from daskinfer import api
    from daskinfer.cli.show import print_checkpoint

    found = api.checkpoint(reference, registry)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        print_checkpoint(found)


@checkpoint.command()
@click.argument("name")
@click.argument("alias")
@click.argument("target")
@registry_option
@json_option
def alias(name: str, alias: str, target: str, registry: str, as_json: bool) -> None:
    """Point ALIAS of NAME at TARGET: a version, a digest or another alias.

    Running jobs keep the version that they are locked on.

    \b
    Examples:
      daskinfer checkpoint alias minilm prod v3
      daskinfer checkpoint alias minilm prod candidate
    """
    from daskinfer import api
    from daskinfer.cli.show import print_resolution

    found = api.set_alias(name, alias, target, registry=registry)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        print_resolution(f"{name}@{alias} is now", found)
