"""Digests and names: how anything gets an identity that two machines agree on."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Encode `value` so that equal values give equal bytes: sorted keys, no spaces, UTF-8.

    Raises
    ------
    ValueError
        For NaN and infinities, which JSON cannot carry.

    Examples
    --------
    >>> canonical_json({"b": 1, "a": [2.5, None]})
    b'{"a":[2.5,null],"b":1}'
    >>> canonical_json({"a": [2.5, None], "b": 1}) == canonical_json({"b": 1, "a": [2.5, None]})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def parse_json(data: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Return what a JSON text says; `parse_constant` is that of `json.loads`.

    Raises
    ------
    ValueError
        It is no JSON, or nested so deeply that no program of ours wrote it.

    Examples
    --------
    >>> parse_json('{"rows": 3}')
    {'rows': 3}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
        ...
    ValueError: nested too deeply
    """
    try:
        return json.loads(data, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def refuse_dense(data: bytes, each: int = 8) -> None:
    """Refuse JSON that would take many times its own bytes of memory: every list and object of it takes 72, however short.

    Parameters
    ----------
    data
        Bytes of a JSON text.
    each
        How many of them at least there are for every list and object.

    Raises
    ------
    ValueError
        It is more lists and objects than anything that was written for a purpose.

    Examples
    --------
    >>> refuse_dense(b'{"rows": [1, 2, 3]}')
    >>> refuse_dense(b"[" * 300_000)
    Traceback (most recent call last):
        ...
    ValueError: it is nearly nothing but lists and objects
    """
    if data.count(b"[") + data.count(b"{") > 200_000 + len(data) // each:
        raise ValueError("it is nearly nothing but lists and objects")


def sha256_of(data: bytes | bytearray | memoryview) -> str:
    """Return `sha256:<64 hex digits>` of the bytes.

    Examples
    --------
    >>> sha256_of(b"")
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of(value: Any) -> str:
    """Return the digest of a JSON-like value's canonical encoding.

    Examples
    --------
    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    >>> digest_of([]) == sha256_of(b"[]")
    True
    """
    return sha256_of(canonical_json(value))


def shorten(digest: str, digits: int = 12) -> str:
    """Return the first hex digits of a digest, for names and for people.

    Examples
    --------
    >>> shorten("sha256:e3b0c44298fc1c149afbf4c8996fb924")
    'e3b0c44298fc'
    """
    return digest.rpartition(":")[2][:digits]


def make_nonce(digits: int = 16) -> str:
    """Return a random hex string that no other writer will have.

    Examples
    --------
    >>> len(make_nonce()), make_nonce() == make_nonce()
    (16, False)
    """
    return secrets.token_hex((digits + 1) // 2)[:digits]
