"""Folders that no other user of the machine can read or put anything into."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_PRIVATE = 0o700


def find_private(parent: Path) -> Path | None:
    """Return this user's folder below one that others may write to; None where there is none, or it is not this user's alone.

    Examples
    --------
    >>> find_private(Path("tmp")) is None
    True
    """
    folder = parent / f"daskinfer-{os.getuid()}"
    try:
        found = folder.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == _PRIVATE
    return folder if is_own else None


def make_private(parent: Path) -> Path | None:
    """Return this user's folder, made where there is none; None where somebody else has put something in its place.

    Raises
    ------
    OSError
        It cannot be made.

    Examples
    --------
    >>> folder = make_private(Path("tmp"))
    >>> oct(folder.stat().st_mode & 0o777), find_private(Path("tmp")) == folder
    ('0o700', True)
    """
    with suppress(FileExistsError):
        (parent / f"daskinfer-{os.getuid()}").mkdir(mode=_PRIVATE, parents=True)
    return find_private(parent)


def open_private(path: Path) -> int:
    """Open a file for writing, made where there is none, and return its descriptor; what is no file is not waited for.

    Raises
    ------
    OSError
        Something else is in its place, or it cannot be opened.

    Examples
    --------
    >>> os.close(open_private(Path("note.lock")))
    >>> os.mkfifo("pipe.lock")
    >>> open_private(Path("pipe.lock"))
    Traceback (most recent call last):
        ...
    OSError: [Errno 22] it is no file: 'pipe.lock'
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor
