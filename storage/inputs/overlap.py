"""Whether a job would read what it writes: its output or its workspace lies where its input looks for files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from daskinfer.errors import InputError
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.columns.format_limits import TABLE_FORMATS
from daskinfer.storage.inputs.files import FORMATS, is_zarr
from daskinfer.storage.inputs.patterns import Pattern, read_pattern
from daskinfer.storage.objects.filesystem import open_filesystem
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local

# Nothing that a job writes has such a name.
_NEVER_WRITTEN = FORMATS.keys() - {f".{name}" for name in TABLE_FORMATS}


def refuse_overlap(section: Input, places: Mapping[str, str]) -> None:
    """Refuse an input that can match what the job writes, now or in any later run; nothing is written.

    Parameters
    ----------
    section
        The recipe's `input`.
    places
        Key of the recipe -> URL of a folder that the job writes to.

    Raises
    ------
    InputError
        It can, or it lies in such a folder.

    Examples
    --------
    >>> refuse_overlap(Input(url="data/*.jsonl"), {"output.url": "results/a.jsonl"})
    >>> refuse_overlap(Input(url="/data/**/*.jsonl"), {"output.url": "/data/results/a.jsonl"})
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: input.url: /data/**/*.jsonl can match what the job writes to /data/results/a.jsonl ...
    Choose another output.url, outside of it, or narrow input.url.
    """
    for url in section.urls:
        for key, place in places.items():
            with explain_errors(url, "look at"):
                overlaps = _overlap(absolute_url(url), absolute_url(place), section.format)
            if overlaps:
                raise InputError(
                    f"input.url: {url} can match what the job writes to {place} ({key}): "
                    "it would read its own results as input, or delete its input with --fresh",
                    hint=f"Choose another {key.split(' ')[0]}, outside of it, or narrow input.url.",
                )


def _overlap(url: str, place: str, form: str) -> bool:
    if is_local(url) != is_local(place):
        return False
    if is_local(url):
        pattern = read_pattern(url, os.path.exists)
        root, target = os.path.realpath(pattern.root), os.path.realpath(place)
        spellings: Iterator[tuple[str, bool]] = _find_spellings(pattern, target)
    else:
        filesystem, path = open_filesystem(url)
        other, where = open_filesystem(place)
        if filesystem != other:
            return False
        pattern = read_pattern(path, filesystem.exists)
        root, target = f"/{pattern.root.strip('/')}", f"/{where.strip('/')}"
        spellings = iter([(target, True)])
        if _is_within(target, root):
            spellings = iter([(str(PurePosixPath(target).relative_to(root)), True)])
        elif not _is_within(root, target):
            spellings = iter([])
    if _is_within(root, target):
        return True
    if not pattern.parts:  # of a folder only its own files are read, and what is written is a folder
        inside = _is_within(target, root) and form in ("auto", "zarr") and is_zarr(url)
        return inside or (is_local(url) and any(not within for _, within in spellings))
    if form == "images" or _ends_otherwise(pattern):
        return any(not within for _, within in spellings)
    return any(
        pattern.matches_within(_names(path)) if within else pattern.matches(_names(path)) for path, within in spellings
    )


def _find_spellings(pattern: Pattern, target: str) -> Iterator[tuple[str, bool]]:
    """Return by which paths below the root the target can be reached, through links too.

    Yields
    ------
    tuple of str and bool
        Path, and whether it is the target or a folder inside it. If not, it is a link to a file inside it.
    """
    start = os.path.realpath(pattern.root)
    if _is_within(target, start):
        yield os.path.relpath(target, start), True
    levels = pattern.levels
    left, seen = [(pattern.root, "", 0)], {start}
    while left:
        folder, names, level = left.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:  # a file, or not there, or not for us: nothing is found in it later either
            continue
        for entry in entries:
            path = f"{names}{entry.name}"
            real = entry.path
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if _is_within(target, real):
                    yield os.path.normpath(f"{path}/{os.path.relpath(target, real)}"), True
                elif _is_within(real, target):
                    yield path, entry.is_dir()
                if real in seen:
                    continue
            if (levels is None or level < levels) and entry.is_dir():
                if entry.is_symlink():
                    seen.add(real)
                left.append((entry.path, f"{path}/", level + 1))


def _ends_otherwise(pattern: Pattern) -> bool:
    """Whether all names that the pattern matches end in a way in which nothing ends that a job writes."""
    tail = re.split(r"[*?\]]", pattern.parts[-1])[-1]
    return PurePosixPath(f"x{tail}").suffix.lower() in _NEVER_WRITTEN


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]
