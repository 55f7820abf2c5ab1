"""Keys: Ed25519 pairs in PEM files, as openssl and others read and write them."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from daskinfer.errors import UsageError
from daskinfer.ids import sha256_of
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url


def make_key(path: str) -> str:
    """Make a pair of keys; return the public one's name.

    Parameters
    ----------
    path
        File of the private key, readable by its owner alone; the public one is put beside it as `path.pub`.

    Raises
    ------
    UsageError
        One of the files is there already: a key that is gone cannot be had back.

    Examples
    --------
    >>> name = make_key("key.pem")
    >>> name == name_key(read_public_key("key.pem.pub"))
    True
    >>> oct(Path("key.pem").stat().st_mode & 0o777)
    '0o600'
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    files = {
        path: private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        f"{path}.pub": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }
    for taken in filter(os.path.lexists, files):
        raise UsageError(f"{taken} is there already", hint="Choose another file; a key is never overwritten.")
    for file, mode in zip(files, (0o600, 0o644), strict=True):
        with explain_errors(file, "create"):
            Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(files[file])
    return name_key(public)


def name_key(key: Ed25519PublicKey) -> str:
    """Return the name of a key: `sha256:...` of its DER encoding.

    Examples
    --------
    >>> name_key(Ed25519PublicKey.from_public_bytes(bytes(32)))[:19]
    'sha256:722abd12e99a'
    """
    return sha256_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def read_private_key(path: str) -> Ed25519PrivateKey:
    """Return the private key in a file.

    Raises
    ------
    UsageError
        There is none, or one of another kind.

    Examples
    --------
    >>> name = make_key("key.pem")
    >>> name_key(read_private_key("key.pem").public_key()) == name
    True
    """
    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:  # how the library says that it wants a password
        raise UsageError(f"{path} is encrypted", hint="Decrypt it first: openssl pkey -in FILE -out NEW") from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not a private Ed25519 key", hint="Make one: daskinfer checkpoint keygen FILE")
    return key


def read_public_key(path: str) -> Ed25519PublicKey:
    """Return the public key in a file.

    Raises
    ------
    UsageError
        There is none, or one of another kind.

    Examples
    --------
    >>> name = make_key("key.pem")
    >>> read_public_key("key.pem")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: key.pem is not a public Ed25519 key...
    """
    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{path} is not a public Ed25519 key", hint="Give the .pub file that daskinfer checkpoint keygen wrote."
        )
    return key


def _read(path: str) -> bytes:
    try:
        return read_bytes(absolute_url(path))
    except FileNotFoundError as error:
        raise UsageError(f"there is no key {path}", hint="Make a pair: daskinfer checkpoint keygen FILE") from error
