"""`checkpoint keygen`, `sign` and `signatures`: who vouches for a version."""

from __future__ import annotations

import json

import click

from daskinfer.cli.console import print_json
from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.plain_text import tell


@click.command()
@click.argument("file", type=click.Path())
@json_option
def keygen(file: str, as_json: bool) -> None:
    """Make a pair of Ed25519 keys: the private one in FILE, readable by you alone, the public one in FILE.pub.

    \b
    Examples:
      daskinfer checkpoint keygen release.key
    """
    from daskinfer import api

    name = api.keygen(file)
    if as_json:
        click.echo(json.dumps({"key": name, "private": file, "public": f"{file}.pub"}))
    else:
        tell(f"{file} is the private key, keep it; {file}.pub is the public one: {name}")


@click.command()
@click.argument("reference")
@click.option("--key", metavar="FILE", required=True, help="The private key.")
@registry_option
@json_option
def sign(reference: str, key: str, registry: str, as_json: bool) -> None:
    """Sign the snapshot that REFERENCE means: its digest, and with it every file and tensor.

    \b
    Examples:
      daskinfer checkpoint sign minilm@v3 --key release.key
    """
    from daskinfer import api
    from daskinfer.cli.evidence import print_signatures

    found = api.sign(reference, key, registry=registry)
    if as_json:
        print_json(found)
    else:
        print_signatures(reference, [found])


@click.command()
@click.argument("reference")
@click.option("--key", metavar="FILE", help="A public key that must have signed it.")
@registry_option
@json_option
def signatures(reference: str, key: str | None, registry: str, as_json: bool) -> None:
    """List the signatures of the snapshot that REFERENCE means; with --key, verify them.

    Without --key they are listed as they say; only a key that you trust can tell which are genuine.

    \b
    Examples:
      daskinfer checkpoint signatures minilm@prod
      daskinfer checkpoint signatures minilm@prod --key release.key.pub
    """
    from daskinfer import api
    from daskinfer.cli.evidence import print_signatures

    rows = api.signatures(reference, registry=registry, key=key)
    if as_json:
        click.echo(json.dumps({"reference": reference, "signatures": [row.model_dump(mode="json") for row in rows]}))
    else:
        print_signatures(reference, rows)
