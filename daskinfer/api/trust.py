"""Who may do what to a registry, what they did, and who vouches for a snapshot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from daskinfer.spec.registry.trust import AuditTrail, RoleRow, SignatureRow
from daskinfer.storage.registry.access.audit import read_trail
from daskinfer.storage.registry.access.keys import make_key, read_public_key
from daskinfer.storage.registry.access.roles import ROLES, make_bucket_policy, make_role_policy
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.signatures import list_signatures, require_signatures
from daskinfer.storage.registry.signatures import sign as sign_snapshot


def roles() -> list[RoleRow]:
    """Return the roles around a registry: what each may write, and what for.

    Examples
    --------
    >>> [row.name for row in roles()]
    ['publisher', 'releaser', 'runner', 'collector']
    """
    return [
        RoleRow(name=name, purpose=role.purpose, create=role.create, replace=role.replace, delete=role.delete)
        for name, role in ROLES.items()
    ]


def role_policy(role: str, registry: str) -> dict[str, Any]:
    """Return the IAM policy of a role in a registry on S3.

    Examples
    --------
    >>> first = role_policy("publisher", "s3://models/registry")["Statement"][0]
    >>> first["Effect"], first["Action"], first["Resource"]
    ('Allow', 's3:ListBucket', 'arn:aws:s3:::models')
    """
    return make_role_policy(role, registry)


def bucket_policy(registry: str) -> dict[str, Any]:
    """Return the bucket policy that keeps the history of a registry on S3 from being rewritten by anyone.

    Examples
    --------
    >>> [statement["Effect"] for statement in bucket_policy("s3://models/registry")["Statement"]]
    ['Deny', 'Deny']
    """
    return make_bucket_policy(registry)


def audit(
    registry: str, *, since: datetime | None = None, by: str | None = None, action: str | None = None
) -> AuditTrail:
    """Return what was decided about a registry, and whatever was changed, deleted or inserted behind its back.

    All of it is verified, whatever is asked for.

    Parameters
    ----------
    registry
        URL of the registry.
    since
        Only events from this time on; in UTC where it names no zone.
    by
        Only those of a principal, `user@host`, or of a user on any host.
    action
        Only publish, yank, alias, lock, collect or sign.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> trail = audit(make_registry("registry", versions=2).url, action="alias")
    >>> [(event.action, event.resource) for event in trail.events], trail.broken
    ([('alias', 'models/mini/aliases/prod'), ('alias', 'models/mini/aliases/prod')], ())
    """
    trail = read_trail(Registry(registry).url)
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    wanted = [
        event
        for event in trail.events
        if (since is None or datetime.fromisoformat(event.at) >= since)
        and (by is None or by in (event.by, event.by.rpartition("@")[0]))
        and (action is None or action == event.action)
    ]
    return trail.model_copy(update={"events": tuple(wanted)})


def keygen(path: str) -> str:
    """Make a pair of Ed25519 keys, `path` and `path.pub`; return the name of the public one.

    Examples
    --------
    >>> from pathlib import Path
    >>> name = keygen("ada")
    >>> sorted(path.name for path in Path(".").iterdir())
    ['ada', 'ada.pub']
    """
    return make_key(path)


def sign(reference: str, key: str, *, registry: str) -> SignatureRow:
    """Sign the snapshot that a checkpoint reference means now; a second time by the same key adds nothing.

    Parameters
    ----------
    reference
        `minilm@v3`.
    key
        File of the private key.
    registry
        URL of the registry.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry").url
    >>> name = keygen("ada")
    >>> sign("mini@prod", "ada", registry=registry).key == name
    True
    """
    found = Registry(registry)
    return sign_snapshot(found, found.resolve(reference), key)


def signatures(reference: str, *, registry: str, key: str | None = None) -> list[SignatureRow]:
    """Return the signatures of the snapshot that a checkpoint reference means now.

    Parameters
    ----------
    reference
        `minilm@v3`.
    registry
        URL of the registry.
    key
        File of a public key that must have signed it; every signature is held against it.

    Raises
    ------
    CheckpointError
        The key has not signed the snapshot.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry").url
    >>> _ = keygen("ada"), sign("mini@prod", "ada", registry=registry)
    >>> [row.valid for row in signatures("mini@prod", registry=registry, key="ada.pub")]
    [True]
    >>> signatures("mini@v1", registry=registry)
    []
    """
    found = Registry(registry)
    snapshot = found.manifest(found.resolve(reference).snapshot).digest
    if key is None:
        return list_signatures(found, snapshot)
    require_signatures(found, snapshot, [key])
    return list_signatures(found, snapshot, read_public_key(key))
