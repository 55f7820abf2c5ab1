"""Folders that no other user of the machine can read or put anything into."""

from __future__ import annotations

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

    Examples
    --------
    >>> folder = make_private(Path("tmp"))
    >>> oct(folder.stat().st_mode & 0o777), find_private(Path("tmp")) == folder
    ('0o700', True)
    """
    with suppress(FileExistsError):
        (parent / f"daskinfer-{os.getuid()}").mkdir(mode=_PRIVATE, parents=True)
    return find_private(parent)
