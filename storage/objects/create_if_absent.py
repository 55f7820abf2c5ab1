"""Create-if-absent, whole or not at all: the one primitive that everything shared is built on.

fsspec's own `mode="create"` checks and then writes on local and memory filesystems, so it lets two writers win.
Here local files use link(2), memory a lock of the process, and object stores their conditional write.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem

from daskinfer.errors import StorageError
from daskinfer.knobs import ONE_PUT, STORE_ATTEMPTS, UPLOAD_PART
from daskinfer.storage.objects.backoff import persist
from daskinfer.storage.objects.filesystem import open_filesystem
from daskinfer.storage.objects.local_files import temporary_file
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.streams import Stream, read_pieces
from daskinfer.storage.objects.urls import absolute_url, is_local

CONDITIONAL_STORES = frozenset({"s3", "s3a", "gs", "gcs"})
PART_BYTES = 50 * 2**20
"""An object store gets larger objects in parts of this size; S3 takes no smaller ones than 5 MiB."""

# Object stores take larger objects in parts of 5 MiB or more, 10,000 at most.
_PARTS = 9_000
_LINKLESS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
MEMORY_LOCK = threading.RLock()
"""Held while an object in memory is looked for and written."""


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

    Examples
    --------
    >>> create("slots/0.json", b"mine"), create("slots/0.json", b"others'"), create("slots/0.json", b"mine")
    (True, False, True)
    """
    if not data:
        raise ValueError(f"refusing to create the empty object {url}")
    with explain_errors(url, "create"):
        if is_local(url):
            return _create_by_link(Path(absolute_url(url)), lambda: [data], partial(holds, data=data))
        filesystem, path = open_filesystem(url)
        protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
        if "memory" in protocols:
            return create_in_memory(filesystem, path, data)
        if protocols & CONDITIONAL_STORES:
            return _create_conditionally(
                url,
                lambda: filesystem.pipe_file(path, data, mode="create", chunksize=part_bytes),
                lambda: _compare(filesystem, path, data),
            )
    raise StorageError(
        f"{url} is not safe to use: daskinfer knows no atomic create on {'/'.join(sorted(protocols))}",
        hint="Use a local or shared directory, s3:// or gs://.",
    )


def create_stream(url: str, stream: Stream) -> bool:
    """Create an object from a stream unless one is there, in bounded memory; nobody ever sees half of it.

    What is there already is read and compared before anything is written.

    Parameters
    ----------
    url
        Where; missing folders are made.
    stream
        The whole object.

    Returns
    -------
    bool
        True if the object at `url` now has these bytes, False if it has others.

    Raises
    ------
    CorruptBlob
        Where the stream's bytes are not what it says; nothing is created then.
    StorageError
        Where the store has no safe way to do this, refuses, is full, or stays busy.

    Examples
    --------
    >>> stream = Stream(size=3, sha256=hashlib.sha256(b"abc").hexdigest(), pieces=lambda: iter([b"a", b"bc"]))
    >>> create_stream("blob", stream), Path("blob").read_bytes()
    (True, b'abc')
    """
    filesystem, path = open_filesystem(url)
    with explain_errors(url, "look for"):
        same = _compare_stream(url, stream)
    if same is not None:
        return same
    local = is_local(url)
    if not local and (stream.size <= ONE_PUT.get() or "memory" in filesystem.protocol):
        return create(url, b"".join(stream.verified()))
    with explain_errors(url, "create"):
        if local:
            holds = partial(_compare_stream, stream=stream)
            return _create_by_link(Path(absolute_url(url)), stream.verified, lambda target: bool(holds(str(target))))
        return _create_conditionally(
            url, lambda: _upload(filesystem, path, stream), lambda: _compare_stream(url, stream)
        )


def _create_by_link(target: Path, pieces: Callable[[], Iterable[bytes]], holds: Callable[[Path], bool]) -> bool:
    for _ in range(STORE_ATTEMPTS.get()):
        with suppress(FileNotFoundError):  # another's object was deleted before it could be read back
            return _link_or_compare(target, pieces, holds)
    raise StorageError(f"{target} keeps being created and deleted", hint="Find out who else writes there.")


def _link_or_compare(target: Path, pieces: Callable[[], Iterable[bytes]], holds: Callable[[Path], bool]) -> bool:
    if target.exists():
        return holds(target)
    with temporary_file(target, pieces()) as temporary:
        return link(temporary, target, holds)


def link(temporary: Path, target: Path, holds: Callable[[Path], bool]) -> bool:
    """Let a whole file appear under its name too, unless one is there; say whether what is there holds what it should.

    Examples
    --------
    >>> _ = Path("temporary").write_bytes(b"whole")
    >>> link(Path("temporary"), Path("record"), lambda target: target.read_bytes() == b"whole")
    True
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        # NFS may lose the answer and then report a link that it made itself; the link count tells.
        if temporary.stat().st_nlink != 2:
            if isinstance(error, FileExistsError):
                return holds(target)
            if error.errno in _LINKLESS:
                raise StorageError(
                    f"{target.parent} is not safe to use: its filesystem has no hard links ({error.strerror})",
                    hint="Use another directory, s3:// or gs://.",
                ) from error
            raise
    sync_folder(target.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Bring the names in a local folder to the disk.

    Examples
    --------
    >>> sync_folder(Path())
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def holds(target: Path, data: bytes) -> bool:
    """Whether a file has these bytes.

    Examples
    --------
    >>> _ = Path("record").write_bytes(b"abc")
    >>> holds(Path("record"), b"abc"), holds(Path("record"), b"abd")
    (True, False)
    """
    return target.stat().st_size == len(data) and target.read_bytes() == data


def create_in_memory(filesystem: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Create an object of this process's memory unless one is there.

    Examples
    --------
    >>> filesystem, path = open_filesystem("memory://examples/slot")
    >>> create_in_memory(filesystem, path, b"mine"), create_in_memory(filesystem, path, b"others'")
    (True, False)
    """
    with MEMORY_LOCK:
        if filesystem.exists(path):
            return bool(filesystem.cat_file(path) == data)
        filesystem.pipe_file(path, data)
        return True


def _create_conditionally(url: str, write: Callable[[], None], compare: Callable[[], bool | None]) -> bool:
    def attempt() -> bool:
        try:
            write()
        except Exception as error:
            same = compare()
            if same is not None:
                return same
            if isinstance(error, FileExistsError):  # deleted between the two requests
                raise OSError(errno.EBUSY, f"{url} came and went") from error
            raise
        return True

    try:
        return persist(url, attempt)
    except FileNotFoundError as error:
        raise StorageError(f"cannot create {url}: {error}", hint="Check that the bucket exists.") from error


def _upload(filesystem: AbstractFileSystem, path: str, stream: Stream) -> None:
    # Closing such a file by itself would commit what was written of it, whole or not.
    file = filesystem.open(path, "xb", block_size=max(UPLOAD_PART.get(), stream.size // _PARTS), autocommit=False)
    try:
        for piece in stream.verified():
            file.write(piece)
        file.close()
        file.commit()
    except BaseException:
        file.closed = True
        file.discard()
        raise


def _compare(filesystem: AbstractFileSystem, path: str, data: bytes) -> bool | None:
    """Whether these bytes lie at the path; None if nothing does."""
    size = _size(filesystem, path)
    if size != len(data):
        return None if size is None else False
    try:
        stored = bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    if len(stored) != size:  # else our own object would pass for another's
        raise ConnectionAbortedError(errno.ECONNABORTED, f"short read of {path}")
    return stored == data


def _compare_stream(url: str, stream: Stream) -> bool | None:
    size = _size(*open_filesystem(url))
    if size != stream.size:
        return None if size is None else False
    digest = hashlib.sha256()
    try:
        for piece in read_pieces(url, 0, stream.size):
            digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest() == stream.sha256


def _size(filesystem: AbstractFileSystem, path: str) -> int | None:
    """Return the length of the object at the path; None if there is none."""
    try:
        found = filesystem.info(path)
    except FileNotFoundError:
        return None
    return int(found["size"]) if found["type"] == "file" else None
