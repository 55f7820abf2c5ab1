"""`checkpoint`: publish, list, show, and the commands of other files."""

from __future__ import annotations

import json

import click

from daskinfer.cli.aliases import alias, history, rollback, yank
from daskinfer.cli.collection import gc, locks
from daskinfer.cli.console import print_json
from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.plain_text import tell
from daskinfer.cli.rights import roles
from daskinfer.cli.signing import keygen, sign, signatures
from daskinfer.cli.upkeep import diff, sync, verify


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
@click.argument("source", required=False)
@click.option("--alias", help="Point this alias at the new version.")
@click.option("--entry", metavar="MODULE:FUNCTION", help="Function of your own that builds the model.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Convert the weights.")
@click.option("--reference", is_flag=True, help="Copy nothing that needs no conversion: refer to SOURCE's files.")
@click.option("--trust-code", is_flag=True, help="Publish and run the code that comes with SOURCE.")
@registry_option
@json_option
def publish(
    name: str,
    source: str | None,
    alias: str | None,
    entry: str | None,
    dtype: str | None,
    reference: bool,
    trust_code: bool,
    registry: str,
    as_json: bool,
) -> None:
    """Publish the checkpoint in SOURCE as a version of NAME.

    SOURCE is a directory, the URL of one, or a published checkpoint to convert. Only safetensors are read; a pickled
    checkpoint is refused. A model of your own comes from --entry, with SOURCE's weights or with its own.

    \b
    Examples:
      daskinfer checkpoint publish minilm ./all-MiniLM-L6-v2 --alias prod
      daskinfer checkpoint publish minilm minilm@v1 --dtype bfloat16
      daskinfer checkpoint publish llama s3://models/llama-70b --reference
      daskinfer checkpoint publish unet ./weights --entry mymodels.unet:build
    """
    from daskinfer import api
    from daskinfer.cli.show import print_changes, print_resolution
    from daskinfer.cli.transfer import TransferDisplay

    with TransferDisplay(name) as display:
        found = api.publish(
            name,
            source,
            registry=registry,
            alias=alias,
            entry=entry,
            dtype=dtype,
            reference=reference,
            trust_code=trust_code,
            watch=display,
        )
    if as_json:
        print_json(found)
        return
    print_resolution("published", found, alias)
    provenance = api.checkpoint(f"{found.name}@{found.snapshot}", registry).provenance
    print_changes(provenance)
    if reference:
        tell(provenance.get("reference", "it was published before, as a copy"))


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
        print_json(found)
    else:
        print_checkpoint(found)


for _command in (alias, history, rollback, yank, verify, diff, sync, locks, gc, roles, keygen, sign, signatures):
    checkpoint.add_command(_command)
