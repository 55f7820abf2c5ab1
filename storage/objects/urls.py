"""URLs of places: one spelling each, and what lies below them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from daskinfer.errors import IntegrityError, UsageError
from daskinfer.redaction import protect

_LOCAL_PREFIXES = ("file://", "local://")


_URL = re.compile(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")


_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


def is_local(url: str) -> bool:
    """Whether the URL is a path on this machine, which may hold any characters, `::` too.

    Examples
    --------
    >>> is_local("data/a::b.jsonl"), is_local("file:///data"), is_local("s3://bucket")
    (True, True, False)
    """
    return url.startswith(_LOCAL_PREFIXES) or not _URL.match(url)


def absolute_url(url: str, base: Path | None = None) -> str:
    """Return the one spelling of a URL: local ones as absolute plain paths, none with a trailing slash.

    Parameters
    ----------
    url
        A path, relative or not, or any fsspec URL. A path that begins with the name of a home folder (`~`, `~anna`)
        starts there.
    base
        Folder that relative paths start from; the working directory by default.

    Raises
    ------
    UsageError
        It is no name that everything which has to write it down could hold, or one that can mean two files.

    Examples
    --------
    >>> absolute_url("file:///data//2026/../rows.jsonl"), absolute_url("s3://bucket/rows/")
    ('/data/rows.jsonl', 's3://bucket/rows')
    >>> absolute_url("rows.jsonl", base=Path("/data"))
    '/data/rows.jsonl'
    """
    if "\0" in url or not _is_text(url):
        raise UsageError(f"{url!r} cannot be a place: its name is no text of UTF-8", hint="Give it another name.")
    if not is_local(url):
        return protect(url.rstrip("/"))
    path = url
    for prefix in _LOCAL_PREFIXES:
        path = path.removeprefix(prefix)
    if path != url and _ESCAPE.search(path):
        # Some programs write %20 for a space in such URLs, others write names as they are.
        raise UsageError(f"{url}: '%' may stand for itself or begin an escape", hint="Write the plain path instead.")
    whole = str((base or Path.cwd()).absolute() / os.path.expanduser(path))  # noqa: PTH111 - leaves unknown users alone
    if not _is_text(whole):
        raise UsageError(
            f"{url}: the folder that it starts from has a name that is not valid UTF-8: {whole!r}",
            hint="Rename the folder, or start from another one.",
        )
    return _normalise(whole)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalise(path: str) -> str:
    """Return an absolute path without dots and double slashes, where `..` leaves a link for what it points to."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            here = "/" + "/".join(parts)
            parts = os.path.realpath(here).strip("/").split("/") if Path(here).is_symlink() else parts
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def join_url(base: str, *parts: str) -> str:
    """Return `base/part/...` with single slashes.

    Raises
    ------
    IntegrityError
        A part, which may come from a record that anybody wrote, would leave `base`.

    Examples
    --------
    >>> join_url("s3://bucket/jobs/", "embed-1", "/record.json")
    's3://bucket/jobs/embed-1/record.json'
    >>> join_url("s3://bucket/jobs", "../registry")
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: '../registry' leaves s3://bucket/jobs
    The record that names it was damaged or changed by hand: put that back.
    """
    if any(".." in part.split("/") or "\0" in part for part in parts):
        raise IntegrityError(
            f"{'/'.join(parts)[:200]!r} leaves {base}",
            hint="The record that names it was damaged or changed by hand: put that back.",
        )
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])
