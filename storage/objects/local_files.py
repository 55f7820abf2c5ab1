"""Files of this machine's disks: written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISFIFO, S_ISREG
from tempfile import TemporaryFile

from daskinfer.errors import StorageError, UsageError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.store_errors import NotOurs, explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local


@contextmanager
def temporary_file(target: Path, pieces: Iterable[bytes]) -> Iterator[Path]:
    """Write the pieces durably beside `target`, making its folder; delete the file afterwards if it is still there.

    Examples
    --------
    >>> with temporary_file(Path("record"), [b"a", b"b"]) as temporary:
    ...     _ = temporary.replace("record")
    >>> Path("record").read_bytes()
    b'ab'
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StorageError(
            f"cannot write {target}: {error.filename} is a file, not a folder", hint="Choose another place."
        ) from error
    temporary = target.with_name(f".{target.name}.{make_nonce()}.tmp")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(url: str) -> None:
    """Delete what killed writers of a local file left beside it; one that lives begins again.

    Examples
    --------
    >>> Path(".record.0123.tmp").touch()
    >>> Path(".other.0123.tmp").touch()
    >>> clear_temporaries("record")
    >>> [path.name for path in Path(".").iterdir()]
    ['.other.0123.tmp']
    """
    if is_local(url):
        target = Path(absolute_url(url))
        for path in target.parent.glob(f".{target.name}.*.tmp"):
            path.unlink(missing_ok=True)


def clear_halves(url: str) -> None:
    """Delete what writers that were killed left half written below a local folder; object stores have no such things.

    Whoever is still writing there fails: for when nothing more is to be written.

    Examples
    --------
    >>> Path(".part.0123.tmp").touch()
    >>> clear_halves(".")
    >>> list(Path(".").iterdir())
    []
    """
    if is_local(url):
        for path in Path(absolute_url(url)).rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def refuse_special(url: str) -> None:
    """Refuse a local pipe, device or socket: whoever opens one may wait for ever.

    Examples
    --------
    >>> os.mkfifo("pipe")
    >>> refuse_special("pipe")
    Traceback (most recent call last):
        ...
    daskinfer.storage.objects.store_errors.NotOurs: pipe is no file but a pipe
    Something else was put in its place: put the file back.
    """
    if is_local(url):
        mode = Path(absolute_url(url)).stat().st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):
            raise NotOurs(
                f"{url} is no file but a {'pipe' if S_ISFIFO(mode) else 'device or socket'}",
                hint="Something else was put in its place: put the file back.",
            )


def refuse_unwritable(url: str) -> None:
    """Refuse a local folder that cannot be made or written to; nothing is written. Of other stores only a write can tell.

    Raises
    ------
    UsageError
        It is a file, lies under one, or where nobody can make files.
    StorageError
        It lies on a read-only disk, or where this user may not write.

    Examples
    --------
    >>> refuse_unwritable("results/new")
    >>> Path("file").touch()
    >>> refuse_unwritable("file/results")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: cannot write to file/results: .../file is a file, not a folder
    Choose another place.
    """
    if not is_local(url):
        return
    folder = Path(absolute_url(url))
    with explain_errors(url, "write to"):
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not there.is_dir():
            kind = "a file" if there.is_file() else "no folder" if there.exists() else "a link to nothing"
            raise UsageError(
                f"cannot write to {url}: {there} is {kind}{', not a folder' if there.is_file() else ''}",
                hint="Choose another place.",
            )
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
        # The kernel's own filesystems (/proc, /sys) have no space and let root pass; so do some that can be written to.
        if not os.statvfs(there).f_blocks:
            try:
                with TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise UsageError(
                    f"cannot write to {url}: no files can be made in {there} ({error.strerror})",
                    hint="It is a filesystem of the system's own; choose another place.",
                ) from error
