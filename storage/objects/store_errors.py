"""Errors of stores, with where they came from and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daskinfer.errors import DaskinferError, NotAllowed, StorageError, StorageRefused
from daskinfer.storage.objects.backoff import is_away
from daskinfer.storage.objects.urls import absolute_url, is_local

_FULL = {errno.ENOSPC, errno.EDQUOT}


_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class NotOurs(StorageError):
    """What lies in the place of one of our files is none: a pipe, or more bytes than any of them has."""


class ShortRead(StorageError):
    """A store gave fewer bytes of a range than were asked for."""


@contextmanager
def explain_errors(url: str, action: str) -> Iterator[None]:
    """Turn what a store raises into a `StorageError` that says what and where.

    `FileNotFoundError` and `FileExistsError` pass: callers decide what they mean.

    Examples
    --------
    >>> import errno
    >>> with explain_errors("/data/out.zarr", "write"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
        ...
    daskinfer.errors.StorageError: no space left on /data/out.zarr
    Free some space or raise the quota, then run the same command again.
    """
    try:
        yield
    except FileNotFoundError as error:
        # What the HTTP client makes of a server that cannot be reached.
        if isinstance(error.__cause__, OSError) and not is_local(url) and is_away(error.__cause__):
            raise _explain(error.__cause__, url, action) from error
        raise
    except (FileExistsError, DaskinferError):
        raise
    except OSError as error:
        raise _explain(error, url, action) from error
    except Exception as error:
        # Clients of object stores raise their own classes for unreachable endpoints and missing credentials.
        if is_local(url):
            raise
        kind = StorageRefused if is_away(error) else StorageError
        raise kind(
            f"cannot {action} {url}: {type(error).__name__}: {error}",
            hint="Check the URL, the credentials and that the store can be reached from this machine.",
        ) from error


def _explain(error: OSError, url: str, action: str) -> StorageError:
    if error.errno in _FULL:
        return StorageError(
            f"no space left on {url}", hint="Free some space or raise the quota, then run the same command again."
        )
    if error.errno in _DENIED or isinstance(error, PermissionError):
        return NotAllowed(f"not allowed to {action} {url}: {error}", hint="Check the permissions on that location.")
    if error.errno == errno.ENOTDIR and is_local(url):
        path = Path(absolute_url(url))
        blocking = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), path)
        kind_of = "a file, not a folder" if blocking.exists() else "a link to nothing"
        return StorageError(f"cannot {action} {url}: {blocking} is {kind_of}", hint="Choose another place.")
    kind = StorageRefused if is_away(error) else StorageError
    return kind(f"cannot {action} {url}: {error}", hint="Check that the location exists and works, then try again.")
