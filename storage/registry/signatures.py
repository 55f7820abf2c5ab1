"""Signatures: who vouches for a snapshot, as DSSE envelopes around in-toto statements, made with Ed25519 keys.

What is signed is the snapshot's digest, the statement's single subject. The digest covers the manifest, the manifest every
blob and tensor, and each worker verifies what it loads against the manifest: one signature covers all of it, and no one
reads more than their part. Signatures lie in the slot log `sigs/<sha256>/` and can be made at any time.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from daskinfer.errors import CheckpointError
from daskinfer.ids import canonical_json, parse_json, shorten
from daskinfer.spec.registry.trust import SignatureRow
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.access.keys import name_key, read_private_key, read_public_key
from daskinfer.storage.registry.catalog import Registry

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:daskinfer:snapshot-signature:1"


def signatures_log(registry: Registry, snapshot: str) -> SlotLog:
    """Return the log of a snapshot's signatures.

    Examples
    --------
    >>> signatures_log(Registry("/registry"), "sha256:ab").url
    '/registry/sigs/ab'
    """
    return SlotLog(join_url(registry.url, "sigs", shorten(snapshot, 64)))


def sign(registry: Registry, resolution: Resolution, key: str) -> SignatureRow:
    """Sign a snapshot, unless this key has signed it already.

    Parameters
    ----------
    registry
        Where the snapshot is; its manifest is verified first.
    resolution
        Which snapshot.
    key
        Path or URL of the private key.

    Raises
    ------
    UsageError
        The key cannot be read.
    NotAllowed
        A policy or the store forbids it.

    Examples
    --------
    >>> from daskinfer.storage.registry.access.keys import make_key
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry, name = make_registry("registry", versions=1), make_key("key.pem")
    >>> sign(registry, registry.resolve("mini"), "key.pem").key == name
    True
    """
    private = read_private_key(key)
    public = private.public_key()
    snapshot = registry.manifest(resolution.snapshot).digest
    log = signatures_log(registry, snapshot)
    known = next((row for row in list_signatures(registry, snapshot, public) if row.valid), None)
    if known is not None:
        return known
    envelope = _make_envelope(private, resolution.name, snapshot)
    record = {"op": "sign", "snapshot": snapshot, "envelope": envelope, **make_signature()}
    slot = authorised_writes.append(Decision(registry.url, "sign", f"sigs/{shorten(snapshot, 64)}"), log, record)
    return _describe(slot.record, snapshot, public)


def list_signatures(registry: Registry, snapshot: str, key: Ed25519PublicKey | None = None) -> list[SignatureRow]:
    """Return what vouches for a snapshot, oldest first; with a key, whether it is that key's word.

    Examples
    --------
    >>> from daskinfer.storage.registry.access.keys import make_key
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry, name = make_registry("registry", versions=1), make_key("key.pem")
    >>> row = sign(registry, registry.resolve("mini"), "key.pem")
    >>> [one.valid for one in list_signatures(registry, registry.resolve("mini").snapshot, read_public_key("key.pem.pub"))]
    [True]
    """
    return [_describe(slot.record, snapshot, key) for slot in signatures_log(registry, snapshot).read()]


def require_signatures(registry: Registry, snapshot: str, keys: Sequence[str]) -> None:
    """Make sure that each of these keys has signed a snapshot.

    Parameters
    ----------
    registry, snapshot
        Which snapshot.
    keys
        Paths or URLs of public keys.

    Raises
    ------
    CheckpointError
        One of them has not.
    UsageError
        A key cannot be read.

    Examples
    --------
    >>> from daskinfer.storage.registry.access.keys import make_key
    >>> name = make_key("key.pem")
    >>> require_signatures(Registry("registry"), "sha256:" + "ab" * 32, ["key.pem.pub"])
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: snapshot abababababab of registry ... is not signed by key.pem.pub, ...
    """
    for key in keys:
        public = read_public_key(key)
        rows = list_signatures(registry, snapshot, public)
        if any(row.valid for row in rows):
            continue
        signers = sorted({f"{shorten(row.key)} ({row.by})" for row in rows})
        raise CheckpointError(
            f"snapshot {shorten(snapshot)} of registry {registry.url} is not signed by {key}, "
            f"key {shorten(name_key(public))}; its signatures: {', '.join(signers) or 'none'}",
            hint="Check that it is the version you mean. Whoever vouches for it says: "
            f"daskinfer checkpoint sign NAME@{snapshot[:19]} --key PRIVATE_KEY",
        )


def encode_payload(kind: str, payload: bytes) -> bytes:
    """Return what a DSSE signature is made over: the pre-authentication encoding of type and payload.

    Examples
    --------
    >>> encode_payload("text/plain", b"hello")
    b'DSSEv1 10 text/plain 5 hello'
    """
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _make_envelope(key: Ed25519PrivateKey, name: str, snapshot: str) -> dict[str, Any]:
    payload = canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": shorten(snapshot, 64)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": make_signature(),
        }
    )
    signature = key.sign(encode_payload(PAYLOAD_TYPE, payload))
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": name_key(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def _describe(record: dict[str, Any], snapshot: str, key: Ed25519PublicKey | None) -> SignatureRow:
    try:
        named = str(record.get("envelope", {})["signatures"][0]["keyid"])
    except (KeyError, TypeError, IndexError):
        named = "unreadable"
    valid = None if key is None else _is_valid(record.get("envelope"), snapshot, key)
    return SignatureRow(key=named, by=str(record.get("by")), at=str(record.get("at")), valid=valid)


def _is_valid(envelope: Any, snapshot: str, key: Ed25519PublicKey) -> bool:
    """Whether an envelope is this key's word for this snapshot; the key id that it names proves nothing."""
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = encode_payload(envelope["payloadType"], payload)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        if not any(_verifies(key, signature, signed) for signature in signatures):
            return False
        statement = parse_json(payload)
        (subject,) = statement["subject"]
        says = (envelope["payloadType"], statement["_type"], statement["predicateType"], subject["digest"])
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        return False
    return says == (PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE, {"sha256": shorten(snapshot, 64)})


def _verifies(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
