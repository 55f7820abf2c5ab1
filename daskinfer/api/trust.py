"""Who may do what to a registry."""

from __future__ import annotations

from typing import Any

from daskinfer.spec.trust import RoleRow
from daskinfer.storage.registry.roles import ROLES, make_bucket_policy, make_role_policy


def roles() -> list[RoleRow]:
    """Return the roles around a registry: what each may write, and what for."""
    return [
        RoleRow(name=name, purpose=role.purpose, create=role.create, replace=role.replace, delete=role.delete)
        for name, role in ROLES.items()
    ]


def role_policy(role: str, registry: str) -> dict[str, Any]:
    """Return the IAM policy of a role in a registry on S3."""
    return make_role_policy(role, registry)


def bucket_policy(registry: str) -> dict[str, Any]:
    """Return the bucket policy that keeps the history of a registry on S3 from being rewritten by anyone."""
    return make_bucket_policy(registry)
