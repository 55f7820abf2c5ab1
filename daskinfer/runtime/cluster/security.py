"""Makes the cluster that a job starts by itself inaccessible to all other users of the machine.

Every port of loopback is open to whoever is logged in, and a Dask process runs what it is sent. So the processes of one
cluster share a certificate that is made for it, and talk to nobody without it.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed.security import Security

from daskinfer.runtime.cluster.private_folder import make_private
from daskinfer.storage.certificates import make_certificate


class TemporarySecurity(Security):
    """Dask's own temporary security, whose key never touches a disk: OpenSSL reads it from memory that has a path."""

    # Python's ssl takes keys from files only.
    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> Any:
        if not hasattr(
            os, "memfd_create"
        ):  # not Linux: a file of the user's own for a moment, in a folder of the user's own
            return super()._get_tls_context(tls, purpose)
        with _in_memory(tls["cert"] + tls["key"]) as path:
            return super()._get_tls_context({**tls, "cert": path, "key": None}, purpose)


def make_security() -> TemporarySecurity:
    """Make the security of one cluster; its processes get it over the pipes that they are started with.

    Examples
    --------
    >>> make_security().require_encryption
    True
    """
    return security_of(*make_certificate("daskinfer"))


def security_of(certificate: str, key: str) -> TemporarySecurity:
    """Return the security of a cluster whose processes share a certificate; both are PEM.

    Examples
    --------
    >>> certificate, key = make_certificate("daskinfer")
    >>> security_of(certificate, key).tls_ca_file == certificate
    True
    """
    roles = ("client", "scheduler", "worker")
    return TemporarySecurity(
        require_encryption=True,
        tls_ca_file=certificate,
        tls_ciphers=None,
        **{f"tls_{role}_cert": certificate for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    )


def private_folder() -> str:
    """Return a folder for the files of workers that no other user can read or put anything into.

    It is the same one each time, so that Dask finds there what killed workers left behind, and deletes it.

    Examples
    --------
    >>> with dask.config.set({"temporary-directory": "tmp"}):
    ...     oct(Path(private_folder()).stat().st_mode & 0o777)
    '0o700'
    """
    parent = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
    folder = make_private(parent)
    return tempfile.mkdtemp(prefix="daskinfer-", dir=parent) if folder is None else str(folder)


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """Give text a path for as long as the context lasts; only this process can open it."""
    descriptor = os.memfd_create("daskinfer")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
