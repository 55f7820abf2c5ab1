"""Names and digests that come from outside, checked before anything is done with them."""

from __future__ import annotations

import re

_LONGEST = 1024
_HEX = re.compile(r"[0-9a-f]{64}")


def check_path(path: str) -> str:
    """Return a path that stays inside its folder, however it is joined to it.

    Examples
    --------
    >>> check_path("blobs/ab/0123")
    'blobs/ab/0123'
    >>> check_path("../secret")
    Traceback (most recent call last):
    ...
    ValueError: '../secret' is not a path inside a folder

    Raises
    ------
    ValueError
        It is empty, absolute, a URL or too long, has an empty part, `.` or `..`, a backslash or a control character.
    """
    parts = path.split("/")
    is_inside = len(path) <= _LONGEST and "\\" not in path and "://" not in path and not {"", ".", ".."} & {*parts}
    if not is_inside or any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise ValueError(f"{path[:100]!r} is not a path inside a folder")
    return path


def check_hex(digits: str) -> str:
    """Return the 64 hex digits of a digest.

    Raises
    ------
    ValueError
        They are something else.

    Examples
    --------
    >>> check_hex("0" * 64) == "0" * 64
    True
    >>> check_hex("sha256:0")
    Traceback (most recent call last):
        ...
    ValueError: 'sha256:0' is not a digest of 64 hex digits
    """
    if not _HEX.fullmatch(digits):
        raise ValueError(f"{digits[:100]!r} is not a digest of 64 hex digits")
    return digits


def check_count(count: int) -> int:
    """Return a length, or a position, in bytes.

    Raises
    ------
    ValueError
        It is negative.

    Examples
    --------
    >>> check_count(0)
    0
    >>> check_count(-1)
    Traceback (most recent call last):
        ...
    ValueError: -1 is not a number of bytes
    """
    if count < 0:
        raise ValueError(f"{count} is not a number of bytes")
    return count
