"""The files of an input: which they are, what format they have, and whether they changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic, iglob
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from daskinfer.errors import InputError
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import InputFile
from daskinfer.storage.filesystem import absolute_url, explain_errors, is_local, open_filesystem

Found = TypeVar("Found")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
}
ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class FoundInput:
    """What an input consists of."""

    format: str
    """jsonl, csv, text, parquet, images or zarr."""
    files: tuple[InputFile, ...]
    """Its files, sorted by path; all objects of a Zarr group or array."""


def find_input(section: Input) -> FoundInput:
    """List the files of an input and tell their format; nothing is opened.

    Parameters
    ----------
    section
        The recipe's `input`: a file, a glob, a folder, whose direct files are taken except those that begin with `_`
        or a dot, or a Zarr group or array. Its url is taken as it is, so make a relative one absolute first.

    Raises
    ------
    InputError
        Where it names no file, only compressed ones, or no single format.
    """
    place = absolute_url(section.url)
    if section.format == "zarr" or (section.format == "auto" and _is_zarr(place)):
        return FoundInput("zarr", _find_objects(place))
    files = _find_files(place)
    name = _choose_format(section.format, files)
    if name == "images":
        files = [file for file in files if _suffix_of(file) in IMAGE_SUFFIXES]
        if not files:
            raise InputError(
                f"input.url: {place} names no image: no file ends in {', '.join(IMAGE_SUFFIXES)}",
                hint="Point input.url to image files, or set input.format to what the files are.",
            )
    return FoundInput(name, tuple(files))


@contextmanager
def unchanged(files: Sequence[InputFile]) -> Iterator[None]:
    """Fail where a file is not, after the reading of it, what it was when the job was planned."""
    try:
        yield
    except Exception as error:
        _check(files, error)
        raise
    _check(files, None)


def map_files(function: Callable[[AbstractFileSystem, InputFile], Found], files: Sequence[InputFile]) -> list[Found]:
    """Apply a function to many files of one filesystem, some at once, and return what it returns in their order."""
    # One filesystem for all threads: fsspec would give each its own, with connections of its own.
    filesystem, _ = open_filesystem(files[0].url)
    if len(files) == 1:
        return [function(filesystem, files[0])]
    with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
        return list(pool.map(lambda file: function(filesystem, file), files))


def path_of(filesystem: AbstractFileSystem, file: InputFile) -> str:
    """Return the path of a file inside its filesystem."""
    return str(filesystem._strip_protocol(file.url))


def _check(files: Sequence[InputFile], cause: Exception | None) -> None:
    for file, what in zip(files, map_files(_tell_change, files), strict=True):
        if what:
            raise InputError(
                f"{file.url} changed while the job ran: {what}",
                hint="Put the old file back and run the same command, or start over on the new one with --fresh.",
            ) from cause


def _tell_change(filesystem: AbstractFileSystem, file: InputFile) -> str | None:
    with explain_errors(file.url, "look at"):
        try:
            path = path_of(filesystem, file)
            now = next(_describe(filesystem, [path] if is_local(file.url) else {path: filesystem.info(path)}), None)
        except FileNotFoundError:
            now = None
    if now is None:
        return "it is gone"
    if now.size != file.size:
        return f"{file.size:,} bytes then, {now.size:,} now"
    return None if now.etag == file.etag else "it was written again"


def _find_files(place: str) -> list[InputFile]:
    with explain_errors(place, "list"):
        filesystem, path = open_filesystem(place)
        found = _match_local(path) if is_local(place) else _match(filesystem, path)
        try:
            files = list(_describe(filesystem, found))
        except FileNotFoundError as error:
            raise InputError(
                f"input.url: {error.filename} was listed and is not there", hint="Is it a link to a deleted file?"
            ) from error
    if not files:
        looked = "a glob" if has_magic(path) else "a file or a folder with files"
        raise InputError(
            f"input.url: nothing matches {place} (looked for {looked})",
            hint="Check the path; a relative one starts from the working directory.",
        )
    for file in files:
        if _suffix_of(file) in _COMPRESSED:
            raise InputError(
                f"input.url: {file.url} is compressed, and a compressed file cannot be read from its middle",
                hint="Decompress it first, or convert it to parquet, which compresses by itself.",
            )
    return files


def _find_objects(place: str) -> tuple[InputFile, ...]:
    with explain_errors(place, "list"):
        filesystem, path = open_filesystem(place)
        found = filesystem.find(path, detail=not is_local(place))
        # What begins with an underscore in an output of daskinfer are its records.
        root = place if is_local(place) else filesystem.unstrip_protocol(path)
        files = [file for file in _describe(filesystem, found) if not file.url.removeprefix(root).startswith("/_")]
    if not {f"{root}/{name}" for name in ZARR_METADATA} & {file.url for file in files}:
        raise InputError(
            f"input.url: {place} is no Zarr group or array: there is none of {', '.join(ZARR_METADATA)} in it",
            hint="Point input.url to the folder that holds one of them, or set input.format to what the files are.",
        )
    return tuple(files)


def _is_zarr(place: str) -> bool:
    suffix = PurePosixPath(place).suffix.lower()
    if suffix == ".zarr" or suffix in FORMATS:
        return suffix == ".zarr"
    with explain_errors(place, "look at"):
        filesystem, path = open_filesystem(place)
        return any(filesystem.exists(f"{path}/{name}") for name in ZARR_METADATA)


def _choose_format(wanted: str, files: Sequence[InputFile]) -> str:
    if wanted != "auto":
        return wanted
    by_suffix = {_suffix_of(file): file.url for file in files}
    formats = {FORMATS.get(suffix) for suffix in by_suffix}
    found = formats.pop() if len(formats) == 1 else None
    if found is None:
        listed = ", ".join(f"'{suffix}' ({url})" for suffix, url in sorted(by_suffix.items())[:4])
        raise InputError(
            f"input.format: auto cannot tell one format from the suffixes {listed}",
            hint="Set input.format to jsonl, csv, text, parquet, images or zarr, or narrow input.url.",
        )
    return found


def _match_local(path: str) -> Iterable[str]:
    """Find paths with little memory each: a folder may hold a million images."""
    if Path(path).is_dir():
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.name[:1] not in ("_", ".")]
    if Path(path).exists():
        return [path]
    # Path.glob knows no absolute patterns.
    return iglob(path, recursive=True, include_hidden=True) if has_magic(path) else []  # noqa: PTH207


def _match(filesystem: AbstractFileSystem, path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        return filesystem.glob(path, detail=True) if has_magic(path) else {}
    if info["type"] == "file":
        return {path: info}
    children = {child["name"]: child for child in filesystem.ls(path, detail=True)}
    return {name: child for name, child in children.items() if PurePosixPath(name).name[:1] not in ("_", ".")}


def _describe(
    filesystem: AbstractFileSystem, found: Mapping[str, Mapping[str, Any]] | Iterable[str]
) -> Iterator[InputFile]:
    """Return those that are files, sorted: of a store with what it tells of them, or local ones by their paths."""
    for path in sorted(found):
        if isinstance(found, Mapping):
            info = found[path]
            if info["type"] == "file":
                etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or filesystem.checksum(path)
                yield InputFile(filesystem.unstrip_protocol(path), int(info["size"]), str(etag).strip('"'))
        elif S_ISREG((status := Path(path).stat()).st_mode):
            # fsspec gives the time as a float, which cannot tell nanoseconds.
            yield InputFile(path, status.st_size, f"mtime:{status.st_mtime_ns}")


def _suffix_of(file: InputFile) -> str:
    # PurePosixPath takes ten times as long, which a million files show.
    stem, dot, suffix = file.url.rpartition("/")[2].rpartition(".")
    return f"{dot}{suffix.lower()}" if stem else ""
