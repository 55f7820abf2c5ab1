"""Bytes behind URLs: one small set of verbs over local paths and every fsspec filesystem."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from daskinfer.errors import StorageError, UsageError
from daskinfer.ids import refuse_dense
from daskinfer.redaction import reveal
from daskinfer.storage.objects.backoff import persist
from daskinfer.storage.objects.local_files import refuse_special, temporary_file
from daskinfer.storage.objects.store_errors import NotOurs, ShortRead, explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local

_LINK = re.compile(r"[A-Za-z][\w+.-]*::|(dir|libarchive|reference|tar|zip)://")
_COMMON = ("s3", "gs", "http", "https", "memory")


LARGEST_RECORD = 16 << 20
"""Bytes of a record that is read whole."""
LARGEST_MANIFEST = 128 << 20
"""Bytes of one that names every tensor of a model."""


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of a URL and the path inside it.

    The listing cache is off: with it, s3fs denies objects that another process created a moment ago.

    Examples
    --------
    >>> filesystem, path = open_filesystem("memory://jobs/embed-1")
    >>> type(filesystem).__name__, path
    ('MemoryFileSystem', '/jobs/embed-1')
    """
    if url.startswith(("gs://", "gcs://")):
        # Else gcsfs asks every bucket over gRPC whether it is a zonal one, which stalls for a minute behind a proxy that
        # passes HTTP only; and in zonal buckets it ignores mode="create" and shows half-written objects.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return find_filesystem(absolute_url(url))


def find_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Do what `open_filesystem` does, for a URL that is absolute.

    Examples
    --------
    >>> find_filesystem("/data/a::b.jsonl")[1]
    '/data/a::b.jsonl'
    >>> find_filesystem("gopher://host/a")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: gopher://host/a: the protocol gopher is not known
    Use a path, or one of s3://, gs://, http://, https://, memory://.
    """
    if is_local(url):
        return LocalFileSystem(use_listings_cache=False), url
    url = reveal_url(url)
    _refuse_unknown(url)
    if "::" in url and not _LINK.match(url):
        # fsspec takes every such URL for a chain of filesystems, though the name of an object may hold it.
        kind = get_filesystem_class(url.partition("://")[0])
        return kind(**kind._get_kwargs_from_urls(url), use_listings_cache=False), kind._strip_protocol(url)
    filesystem, path = url_to_fs(url, use_listings_cache=False)
    return filesystem, path


def _refuse_unknown(url: str) -> None:
    """Refuse a URL of a protocol that nobody here knows."""
    protocol = re.split("://|::", url)[0]
    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in _COMMON)
        raise UsageError(
            f"{url}: the protocol {protocol} is not known", hint=f"Use a path, or one of {known}."
        ) from error
    except ImportError as error:
        raise UsageError(
            f"{url}: the protocol {protocol} needs a package that is not installed", hint=str(error)
        ) from error


def reveal_url(url: str) -> str:
    """Return a URL with its secrets, for nobody but whoever opens it.

    Raises
    ------
    UsageError
        One of them is not known here.

    Examples
    --------
    >>> reveal_url("s3://bucket/a")
    's3://bucket/a'
    >>> reveal_url("ftp://me:${NOBODY_SET_THIS}@host/a")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: ftp://me:${NOBODY_SET_THIS}@host/a: its secret NOBODY_SET_THIS is not known here
    Set the environment variable of that name, or run the recipe that holds it.
    """
    try:
        return reveal(url)
    except KeyError as error:
        raise UsageError(
            f"{url}: its secret {error.args[0]} is not known here",
            hint="Set the environment variable of that name, or run the recipe that holds it.",
        ) from None


def read_bytes(url: str, begin: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes of an object, or of the range from `begin` up to `end`.

    Raises
    ------
    FileNotFoundError
        Where there is no such object.
    ShortRead
        Where the object has, or the store gives, fewer bytes than the range.
    NotAllowed
        Where the store refuses this user.
    StorageError
        Where the store refuses otherwise.

    Examples
    --------
    >>> replace_bytes("record", b"0123456789")
    >>> read_bytes("record", 2, 5)
    b'234'
    >>> read_bytes("record", 8, 12)
    Traceback (most recent call last):
        ...
    daskinfer.storage.objects.store_errors.ShortRead: short read of record: bytes 8 to 12 were asked for, 2 came
    The object is shorter than its record says, or the connection broke; run the command again.
    """
    return open_reader(url)(begin, end)


def read_record(url: str, most: int = LARGEST_RECORD) -> bytes:
    """Return the bytes of a JSON record, which is read whole and therefore bounded.

    Raises
    ------
    FileNotFoundError
        Where there is no such object.
    NotOurs
        Where it has more bytes than that, or would take many times as many once it is parsed.
    StorageError
        Where the store refuses.

    Examples
    --------
    >>> replace_bytes("record", b'{"rows": 3}')
    >>> read_record("record")
    b'{"rows": 3}'
    >>> read_record("record", most=4)
    Traceback (most recent call last):
        ...
    daskinfer.storage.objects.store_errors.NotOurs: record has more than 4 bytes, and none of our records of its kind has
    It was damaged or changed by hand: put it back.
    """
    with explain_errors(url, "read"):
        filesystem, path = open_filesystem(url)
        refuse_special(url)
        data = _read_range(filesystem, path, 0, most + 1)
    if len(data) > most:
        raise NotOurs(
            f"{url} has more than {most:,} bytes, and none of our records of its kind has",
            hint="It was damaged or changed by hand: put it back.",
        )
    try:
        refuse_dense(data)
    except ValueError as error:
        raise NotOurs(f"{url} is none of our records: {error}", hint="It was changed by hand: put it back.") from error
    return data


def open_reader(url: str) -> Callable[[int | None, int | None], bytes]:
    """Return `read_bytes` of one object, for many ranges and for threads.

    fsspec gives every thread a filesystem, and with it connections, of its own; threads that share a reader share them.

    Examples
    --------
    >>> replace_bytes("record", b"0123456789")
    >>> read = open_reader("record")
    >>> read(0, 2), read(8, None)
    (b'01', b'89')
    """
    with explain_errors(url, "read"):
        filesystem, path = open_filesystem(url)

    def read_range(begin: int | None, end: int | None) -> bytes:
        with explain_errors(url, "read"):
            refuse_special(url)
            data = _read_range(filesystem, path, begin, end)
        if end is not None and len(data) != end - (begin or 0):
            if len(data) > end - (begin or 0):
                raise StorageError(
                    f"{url}: the server ignores Range requests: bytes {begin or 0} to {end} were asked for, "
                    f"{len(data)} came",
                    hint="Copy the file to a disk or an object store, or serve it by a server that answers ranges "
                    "(nginx, Apache, Caddy).",
                )
            raise ShortRead(
                f"short read of {url}: bytes {begin or 0} to {end} were asked for, {len(data)} came",
                hint="The object is shorter than its record says, or the connection broke; run the command again.",
            )
        return data

    return read_range


def _read_range(filesystem: AbstractFileSystem, path: str, begin: int | None, end: int | None) -> bytes:
    """Return what there is of a range."""
    try:
        return bytes(filesystem.cat_file(path, start=begin, end=end))
    except Exception as error:
        # How s3fs and gcsfs say 416: the range begins past the end. Other stores return nothing.
        if end is None or (getattr(error, "errno", None) != errno.EINVAL and getattr(error, "code", None) != 416):
            raise
        return b""


def exists(url: str) -> bool:
    """Whether an object or a folder with objects is there.

    Examples
    --------
    >>> replace_bytes("jobs/embed-1/record", b"{}")
    >>> exists("jobs/embed-1"), exists("jobs/embed-2")
    (True, False)
    """
    with explain_errors(url, "look for"):
        filesystem, path = open_filesystem(url)
        return bool(filesystem.exists(path))


def size_of(url: str) -> int:
    """Return an object's length in bytes; `FileNotFoundError` where there is none.

    Examples
    --------
    >>> replace_bytes("record", b"abc")
    >>> size_of("record")
    3
    """
    with explain_errors(url, "look for"):
        filesystem, path = open_filesystem(url)
        return int(filesystem.size(path))


def list_names(url: str) -> list[str]:
    """Return the names of the direct children of a folder, sorted; nothing where there is no folder.

    Half-written files of `temporary_name` are left out.

    Examples
    --------
    >>> replace_bytes("jobs/b/record", b"{}")
    >>> replace_bytes("jobs/a", b"{}")
    >>> list_names("jobs"), list_names("nowhere")
    (['a', 'b'], [])
    """
    with explain_errors(url, "list"):
        filesystem, path = open_filesystem(url)
        try:
            children = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
    folder = path.strip("/")
    names = set()
    for child in children:
        parent, _, name = str(child).strip("/").rpartition("/")
        if parent == folder and not (name.startswith(".") and name.endswith(".tmp")):
            names.add(name)
    return sorted(names)


def find_files(url: str) -> dict[str, int]:
    """Return every file below a folder, half-written ones too: its path from there, and its length in bytes.

    Examples
    --------
    >>> replace_bytes("jobs/b/record", b"{}")
    >>> find_files("jobs")
    {'b/record': 2}
    """
    with explain_errors(url, "list"):
        filesystem, path = open_filesystem(url)
        found = filesystem.find(path, detail=True)
    prefix = f"{path.strip('/')}/"
    return {str(name).strip("/").removeprefix(prefix): int(entry["size"]) for name, entry in found.items()}


def modified_at(url: str) -> datetime | None:
    """Return when an object was last written, by the store's clock; None where it is missing or the store cannot say.

    Examples
    --------
    >>> replace_bytes("record", b"{}")
    >>> modified_at("record") <= datetime.now(UTC), modified_at("nowhere")
    (True, None)
    """
    with explain_errors(url, "look for"):
        filesystem, path = open_filesystem(url)
        try:
            found: datetime = filesystem.modified(path)
        except (FileNotFoundError, NotImplementedError):
            return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def delete(url: str, recursive: bool = False) -> None:
    """Delete an object, or a whole folder; a missing one is fine.

    Examples
    --------
    >>> replace_bytes("jobs/a/record", b"{}")
    >>> delete("jobs/a", recursive=True)
    >>> delete("jobs/a/record")
    >>> exists("jobs/a")
    False
    """
    with explain_errors(url, "delete"):
        filesystem, path = open_filesystem(url)
        try:
            if recursive:
                filesystem.rm(path, recursive=True)
            else:
                filesystem.rm_file(path)
        except FileNotFoundError:
            return


def replace_bytes(url: str, data: bytes) -> None:
    """Overwrite an object so that readers see the old bytes or the new ones. For objects with a single writer.

    Examples
    --------
    >>> replace_bytes("made/on/the/way", b"old")
    >>> replace_bytes("made/on/the/way", b"new")
    >>> read_bytes("made/on/the/way")
    b'new'
    """
    with explain_errors(url, "write"):
        if not is_local(url):
            filesystem, path = open_filesystem(url)
            persist(url, partial(filesystem.pipe_file, path, data))
            return
        target = Path(absolute_url(url))
        with temporary_file(target, [data]) as temporary:
            temporary.replace(target)
