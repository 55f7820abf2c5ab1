"""Create-if-absent, whole or not at all: the one primitive that everything shared is built on.

fsspec's own `mode="create"` checks and then writes on local and memory filesystems, so it lets two writers win.
Here local files use link(2), memory a lock of the process, and object stores their conditional write.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from fsspec import AbstractFileSystem
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from daskinfer.errors import StorageError
from daskinfer.storage.filesystem import absolute_url, explain_errors, is_local, open_filesystem, temporary_file

CONDITIONAL_STORES = frozenset({"s3", "s3a", "gs", "gcs"})
PART_BYTES = 50 * 2**20
"""An object store gets larger objects in parts of this size; S3 takes no smaller ones than 5 MiB."""

_ATTEMPTS = 8
_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT}
_TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_CLASSES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.HTTPClientError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}
_LINKLESS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_MEMORY_LOCK = threading.Lock()


def create(url: str, data: bytes, part_bytes: int = PART_BYTES) -> bool:
    """Create an object unless one is there; nobody ever sees half of it.

    A writer whose acknowledgement was lost is told that the object exists, so whenever a store does not simply agree,
    the object is read back and compared. Put a nonce into `data` where two writers could otherwise write equal bytes.

    Parameters
    ----------
    url
        Where; missing folders are made.
    data
        The whole object; empty ones are refused, because s3fs would overwrite with them.
    part_bytes
        Object stores get objects of twice this size and more in parts.

    Returns
    -------
    bool
        True if the object at `url` now has these bytes, False if it has others.

    Raises
    ------
    StorageError
        Where the store has no safe way to do this, refuses, is full, or stays busy.
    """
    if not data:
        raise ValueError(f"refusing to create the empty object {url}")
    with explain_errors(url, "create"):
        if is_local(url):
            return _create_by_link(Path(absolute_url(url)), data)
        filesystem, path = open_filesystem(url)
        protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
        if "memory" in protocols:
            return _create_in_memory(filesystem, path, data)
        if protocols & CONDITIONAL_STORES:
            return _create_conditionally(filesystem, path, data, url, part_bytes)
    raise StorageError(
        f"{url} is not safe to use: daskinfer knows no atomic create on {'/'.join(sorted(protocols))}",
        hint="Use a local or shared directory, s3:// or gs://.",
    )


def _create_by_link(target: Path, data: bytes) -> bool:
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # another's object was deleted before it could be read back
            return _link_or_compare(target, data)
    raise StorageError(f"{target} keeps being created and deleted", hint="Find out who else writes there.")


def _link_or_compare(target: Path, data: bytes) -> bool:
    if target.exists():
        return _holds(target, data)
    with temporary_file(target, data) as temporary:
        try:
            os.link(temporary, target)
        except OSError as error:
            # NFS may lose the answer and then report a link that it made itself; the link count tells.
            if temporary.stat().st_nlink != 2:
                if isinstance(error, FileExistsError):
                    return _holds(target, data)
                if error.errno in _LINKLESS:
                    raise StorageError(
                        f"{target.parent} is not safe to use: its filesystem has no hard links ({error.strerror})",
                        hint="Use another directory, s3:// or gs://.",
                    ) from error
                raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _holds(target: Path, data: bytes) -> bool:
    return target.stat().st_size == len(data) and target.read_bytes() == data


def _create_in_memory(filesystem: AbstractFileSystem, path: str, data: bytes) -> bool:
    with _MEMORY_LOCK:
        if filesystem.exists(path):
            return bool(filesystem.cat_file(path) == data)
        filesystem.pipe_file(path, data)
        return True


def _create_conditionally(filesystem: AbstractFileSystem, path: str, data: bytes, url: str, part_bytes: int) -> bool:
    def attempt() -> bool:
        try:
            filesystem.pipe_file(path, data, mode="create", chunksize=part_bytes)
        except Exception as error:
            stored = _stored_bytes(filesystem, path, len(data))
            if stored is not None:
                return stored == data
            if isinstance(error, FileExistsError):  # deleted between the two requests
                raise OSError(errno.EBUSY, f"{path} came and went") from error
            raise
        return True

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_attempt(_ATTEMPTS),
    )
    try:
        return retrying(attempt)
    except RetryError as error:
        raise StorageError(
            f"{url} stayed busy for {_ATTEMPTS} attempts: {error.last_attempt.exception()}",
            hint="The store is overloaded or refuses conditional writes; run the command again later.",
        ) from error
    except FileNotFoundError as error:
        raise StorageError(f"cannot create {url}: {error}", hint="Check that the bucket exists.") from error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return True
    # Clients raise classes of their own, and s3fs knows too few of the codes that S3 sends with a 409.
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return _http_status(error) in _TRANSIENT_STATUS or not names.isdisjoint(_TRANSIENT_CLASSES)


def _http_status(error: BaseException) -> int:
    """Return the status that a store answered with, where its client tells: gcsfs in `code`, s3fs in the cause."""
    code = getattr(error, "code", 0)
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(code) if str(code).isdecimal() else 0


def _stored_bytes(filesystem: AbstractFileSystem, path: str, size: int) -> bytes | None:
    """Return what lies at the path, b"" if it has another size, None if nothing lies there."""
    try:
        found = filesystem.info(path)
        if found["type"] != "file":
            return None
        if found["size"] != size:
            return b""
        data = bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    if len(data) != size:  # else our own object would pass for another's
        raise ConnectionAbortedError(errno.ECONNABORTED, f"short read of {path}")
    return data
