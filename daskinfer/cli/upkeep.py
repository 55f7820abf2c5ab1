"""`checkpoint verify`, `diff` and `sync`: looking after registries."""

from __future__ import annotations

import click

from daskinfer.cli.options import json_option, registry_option


@click.command()
@click.argument("reference", required=False)
@click.option("--deep", is_flag=True, help="Read every byte and hash it anew.")
@registry_option
@json_option
@click.pass_context
def verify(ctx: click.Context, reference: str | None, deep: bool, registry: str, as_json: bool) -> None:
    """Look over the checkpoint that REFERENCE means, or a whole registry; nothing is changed.

    Manifests, the presence and length of every blob, and every log are looked at; --deep also hashes all blobs and
    tensors, those that are only referred to as well. Exits with 1 where anything is damaged.

    \b
    Examples:
      daskinfer checkpoint verify
      daskinfer checkpoint verify minilm@prod --deep
    """
    from daskinfer import api
    from daskinfer.cli.registries import print_verification
    from daskinfer.cli.transfer import TransferDisplay

    with TransferDisplay(reference or "registry") as display:
        found = api.verify(reference, registry=registry, deep=deep, watch=display)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        print_verification(found)
    ctx.exit(found.damaged)


@click.command()
@click.argument("before")
@click.argument("after")
@registry_option
@json_option
def diff(before: str, after: str, registry: str, as_json: bool) -> None:
    """Show what differs between the checkpoints that BEFORE and AFTER mean, and by how much.

    Files, layer groups and tensors are compared by digest; only tensors that differ are read.

    \b
    Examples:
      daskinfer checkpoint diff minilm@prod minilm@candidate
      daskinfer checkpoint diff minilm@v1 minilm@v2 --json
    """
    from daskinfer import api
    from daskinfer.cli.registries import print_difference
    from daskinfer.cli.transfer import TransferDisplay

    with TransferDisplay(f"{before} {after}") as display:
        found = api.diff(before, after, registry=registry, watch=display)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        print_difference(found)
