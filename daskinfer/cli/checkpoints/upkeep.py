"""`checkpoint verify`, `diff` and `sync`: looking after registries."""

from __future__ import annotations

from typing import Literal

import click

from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.output.console import print_json


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
    from daskinfer.cli.output.registries import print_verification
    from daskinfer.cli.output.transfer import TransferDisplay

    with TransferDisplay(reference or "registry") as display:
        found = api.verify(reference, registry=registry, deep=deep, watch=display)
    if as_json:
        print_json(found)
    else:
        print_verification(found)
    ctx.exit(int(found.damaged))


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
    from daskinfer.cli.output.registries import print_difference
    from daskinfer.cli.output.transfer import TransferDisplay

    with TransferDisplay(f"{before} {after}") as display:
        found = api.diff(before, after, registry=registry, watch=display)
    if as_json:
        print_json(found)
    else:
        print_difference(found)


@click.command()
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@click.argument("references", metavar="[NAME[@REF]]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Write nothing; only say what would be done.")
@click.option(
    "--resolve",
    "resolutions",
    metavar="NAME@ALIAS=SIDE",
    multiple=True,
    help="For an alias that was moved in both: keep where the source or the target points. May be repeated.",
)
@json_option
@click.pass_context
def sync(
    ctx: click.Context,
    source: str,
    target: str,
    references: tuple[str, ...],
    dry_run: bool,
    resolutions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Copy what registry A has and registry B lacks; A is not changed.

    Snapshots keep their digests, version numbers may differ. NAME takes all versions and aliases of a model, NAME@ALIAS
    one version and the alias, NAME@v3 one version. An alias that was moved in both registries is left alone until
    --resolve says whose target to keep; the command then exits with 1. An interrupted sync leaves nothing
    half-copied in sight: run it again.

    \b
    Examples:
      daskinfer checkpoint sync ./work/registry s3://bucket/registry
      daskinfer checkpoint sync s3://bucket/registry ./work/registry minilm@prod --dry-run
      daskinfer checkpoint sync ./work/registry s3://bucket/registry --resolve minilm@prod=source
    """
    resolve = dict(map(_read_resolution, resolutions))
    from daskinfer import api
    from daskinfer.cli.output.registries import print_sync
    from daskinfer.cli.output.transfer import TransferDisplay

    with TransferDisplay("sync") as display:
        found = api.sync(source, target, references, dry_run=dry_run, resolve=resolve, watch=display)
    if as_json:
        print_json(found)
    else:
        print_sync(found)
    ctx.exit(int(not found.clean))


def _read_resolution(text: str) -> tuple[str, Literal["source", "target"]]:
    key, _, side = text.rpartition("=")
    if "@" not in key or side not in ("source", "target"):
        raise click.UsageError(f"{text!r} is not NAME@ALIAS=source or NAME@ALIAS=target")
    return key, "source" if side == "source" else "target"
