"""Roles: who may write where in a registry, in one table, and the same table as documents that S3 enforces.

Every kind of decision has a folder of its own, so rights on prefixes are rights to decide. What is created once is never
overwritten, and the part of it that is nobody's to delete is history: a bucket policy holds everyone to both, whatever
their role.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from daskinfer.errors import UsageError
from daskinfer.storage.objects.naming import suggest


@dataclass(frozen=True, slots=True)
class Role:
    """What somebody does with a registry, and what they must be able to write for it; everyone may read it all."""

    purpose: str
    """In a few words."""
    create: tuple[str, ...]
    """Objects that they create, relative to the registry; `*` stands for anything, slashes included."""
    replace: tuple[str, ...] = ()
    """Objects that they also overwrite: heartbeats and what can be computed again."""
    delete: tuple[str, ...] = ()
    """Objects that they delete."""


_EVENTS = "audit/*"
_LOCK, _LOCK_BEAT, _LOCKS = "locks/*.json", "locks/*.hb", "locks/*"
_SIGNATURES = "sigs/*"
_PUBLISHING, _PUBLISH_BEAT = ("publish/*.json", "publish/*.done"), "publish/*.hb"

ROLES = {
    "publisher": Role(
        "publishes and yanks versions",
        create=(
            "format.json",
            "blobs/*",
            "manifests/*",
            *_PUBLISHING,
            "models/*/versions/*",
            _SIGNATURES,
            _LOCK,
            _EVENTS,
        ),
        replace=(_PUBLISH_BEAT, _LOCK_BEAT, "outlines/*", "profiles/*"),
        delete=(_PUBLISH_BEAT, _LOCKS),
    ),
    "releaser": Role(
        "moves aliases",
        create=("models/*/aliases/*", _SIGNATURES, _LOCK, _EVENTS),
        replace=(_LOCK_BEAT,),
        delete=(_LOCKS,),
    ),
    "runner": Role("runs jobs", create=(_LOCK, _EVENTS), replace=(_LOCK_BEAT,), delete=(_LOCKS,)),
    "collector": Role(
        "deletes what nothing needs",
        create=("life/*", *_PUBLISHING, _EVENTS),
        delete=("blobs/*", "manifests/*", _PUBLISH_BEAT, _LOCKS),
    ),
}
"""The table; a person or a service may have several roles."""

ONCE = tuple(sorted({pattern for role in ROLES.values() for pattern in role.create}))
"""What is created once and never overwritten."""

HISTORY = tuple(
    pattern
    for pattern in ONCE
    if not any(fnmatchcase(pattern, deleted) for role in ROLES.values() for deleted in role.delete)
)
"""What is never deleted either."""


def make_role_policy(role: str, registry: str) -> dict[str, Any]:
    """Return the IAM policy that lets its holder do what a role needs in a registry, and nothing else.

    Raises
    ------
    UsageError
        There is no such role, or the registry is not on S3.

    Examples
    --------
    >>> policy = make_role_policy("runner", "s3://bucket/registry")
    >>> {statement["Sid"]: statement["Resource"] for statement in policy["Statement"]}["Delete"]
    ['arn:aws:s3:::bucket/registry/locks/*']
    """
    if role not in ROLES:
        raise UsageError(f"there is no role {role!r}", hint=suggest(role, ROLES))
    found = ROLES[role]
    bucket, prefix = _split(registry)
    listing: dict[str, Any] = {"Action": "s3:ListBucket", "Resource": _arn(bucket)}
    if prefix:
        # IfExists: S3 says 404 for an object that is not there only to who may list the bucket, and a request for an
        # object has no s3:prefix. Without it every look for the end of a log would be refused.
        folder = _escape(prefix)
        listing["Condition"] = {"StringLikeIfExists": {"s3:prefix": [folder, f"{folder}/*"]}}
    statements = {
        "List": listing,
        "Read": {"Action": "s3:GetObject", "Resource": _arn(bucket, prefix, "*")},
        "Write": {
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
            "Resource": [_arn(bucket, prefix, pattern) for pattern in (*found.create, *found.replace)],
        },
    }
    if found.delete:
        statements["Delete"] = {
            "Action": "s3:DeleteObject",
            "Resource": [_arn(bucket, prefix, pattern) for pattern in found.delete],
        }
    return _document([{"Sid": name, "Effect": "Allow", **statement} for name, statement in statements.items()])


def make_bucket_policy(registry: str) -> dict[str, Any]:
    """Return the bucket policy that keeps everyone, whatever their role, from rewriting a registry's history.

    Raises
    ------
    UsageError
        The registry is not on S3.

    Examples
    --------
    >>> policy = make_bucket_policy("s3://bucket/registry")
    >>> [(statement["Sid"], statement["Effect"]) for statement in policy["Statement"]]
    [('CreateOnlyWhatIsNotThere', 'Deny'), ('KeepHistory', 'Deny')]
    """
    bucket, prefix = _split(registry)
    return _document(
        [
            {
                "Sid": "CreateOnlyWhatIsNotThere",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:PutObject",
                "Resource": [_arn(bucket, prefix, pattern) for pattern in ONCE],
                # Starting a multipart upload and sending its parts create no object and cannot be conditional; only
                # completing it does and must be.
                "Condition": {
                    "Null": {"s3:if-none-match": "true"},
                    "Bool": {"s3:ObjectCreationOperation": "true"},
                },
            },
            {
                "Sid": "KeepHistory",
                "Effect": "Deny",
                "Principal": "*",
                "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
                "Resource": [_arn(bucket, prefix, pattern) for pattern in HISTORY],
            },
        ]
    )


def _document(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _split(registry: str) -> tuple[str, str]:
    protocol, _, path = registry.partition("://")
    bucket, _, prefix = path.strip("/").partition("/")
    if protocol not in ("s3", "s3a") or not bucket:
        raise UsageError(
            f"{registry} is not on S3, so there is no policy for it",
            hint="Say --registry s3://BUCKET/PREFIX. In a directory rights are file modes; see docs/howto/rights.md.",
        )
    return bucket, prefix


def _arn(bucket: str, prefix: str | None = None, pattern: str | None = None) -> str:
    path = [bucket]
    if prefix:
        path.append(_escape(prefix))
    if pattern:
        path.append(pattern)
    return f"arn:aws:s3:::{'/'.join(path)}"


def _escape(text: str) -> str:
    """Return the text with the characters that mean something in a policy taken literally."""
    return "".join(f"${{{letter}}}" if letter in "*?$" else letter for letter in text)
