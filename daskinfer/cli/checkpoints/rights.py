"""`checkpoint roles`: who needs which rights on the store."""

from __future__ import annotations

import json

import click

from daskinfer.cli.options import json_option, registry_option


@click.command()
@click.argument("role", required=False)
@click.option(
    "--bucket-policy", is_flag=True, help="Print the bucket policy that keeps everyone from rewriting history."
)
@registry_option
@json_option
def roles(role: str | None, bucket_policy: bool, registry: str, as_json: bool) -> None:
    """Print which role writes where in a registry, or the policy that S3 enforces for ROLE.

    ROLE is publisher, releaser, runner or collector. Its policy is an IAM policy document in JSON that grants what the
    role needs and nothing else.

    \b
    Examples:
      daskinfer checkpoint roles
      daskinfer checkpoint roles runner --registry s3://bucket/registry > runner.json
      daskinfer checkpoint roles --bucket-policy --registry s3://bucket/registry > bucket.json
    """
    from daskinfer import api
    from daskinfer.cli.output.evidence import print_roles

    if role is not None and bucket_policy:
        raise click.UsageError("the bucket policy is the same for all roles: give ROLE or --bucket-policy")
    if role is not None or bucket_policy:
        document = api.bucket_policy(registry) if role is None else api.role_policy(role, registry)
        click.echo(json.dumps(document, indent=None if as_json else 2))
        return
    rows = api.roles()
    if as_json:
        click.echo(json.dumps({"roles": [row.model_dump(mode="json") for row in rows]}))
    else:
        print_roles(rows)
