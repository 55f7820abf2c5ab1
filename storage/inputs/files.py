"""The files of an input: which they are, what format they have, and whether they changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic, iglob
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISFIFO, S_ISREG, S_ISSOCK
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from daskinfer.errors import InputError
from daskinfer.redaction import conceal_known, protect
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import InputFile
from daskinfer.storage.inputs.compression import compression_of
from daskinfer.storage.inputs.patterns import read_pattern
from daskinfer.storage.objects.backoff import is_away
from daskinfer.storage.objects.filesystem import open_filesystem, reveal_url
from daskinfer.storage.objects.plain_store import LARGEST_METADATA, METADATA
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local

Found = TypeVar("Found")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
}
ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
LINE_FORMATS = frozenset({"jsonl", "csv", "text"})
"""Formats of text, which may be compressed and in any encoding."""
_UNREADABLE = {".7z", ".br", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz", ".tar", ".tgz", ".z", ".zip"}
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class FoundInput:
    """What an input consists of."""

    format: str
    """jsonl, csv, text, parquet, images or zarr."""
    files: tuple[InputFile, ...]
    """Its files, sorted by path; all objects of a Zarr group or array."""


def find_input(section: Input) -> FoundInput:
    r"""List the files of an input and tell their format; nothing is opened.

    Parameters
    ----------
    section
        The recipe's `input`: files, globs, or folders, whose direct files are taken except those that begin with `_`
        or a dot, each in its turn; or a Zarr group or array. Its urls are taken as they are, so make relative ones
        absolute first.

    Raises
    ------
    InputError
        Where a url names no file, a file is named twice, packed in a way that cannot be read, or there is no single
        format.

    Examples
    --------
    >>> _ = Path("a.jsonl").write_text("{}\n")
    >>> Path("_done").touch()
    >>> found = find_input(Input(url="."))
    >>> found.format, [PurePosixPath(file.url).name for file in found.files]
    ('jsonl', ['a.jsonl'])
    """
    places = [absolute_url(url) for url in section.urls]
    if section.format == "zarr" or (section.format == "auto" and any(map(is_zarr, places))):
        if len(places) > 1:
            raise InputError(
                f"input.url: {places[0]} is one of {len(places)} urls, and Zarr must be the only one",
                hint="Give one url.",
            )
        return FoundInput("zarr", _find_objects(places[0]))
    files = _find_all(places)
    _refuse_compressed(files, "text")
    name = _choose_format(section.format, files)
    _refuse_compressed(files, name)
    if name == "images":
        files = [file for file in files if _suffix_of(file) in IMAGE_SUFFIXES]
        if not files:
            raise InputError(
                f"input.url: {', '.join(places)} contains no images: no file ends in {', '.join(IMAGE_SUFFIXES)}",
                hint="Point input.url to image files, or set input.format to what the files are.",
            )
    return FoundInput(name, tuple(files))


@contextmanager
def unchanged(files: Sequence[InputFile]) -> Iterator[None]:
    r"""Fail where a file is not, after the reading of it, what it was when the job was planned.

    Examples
    --------
    >>> _ = Path("a.jsonl").write_text("{}\n")
    >>> with unchanged(find_input(Input(url="a.jsonl")).files):
    ...     _ = Path("a.jsonl").write_text("{}\n{}\n")
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: ...a.jsonl changed while the job ran: 3 bytes then, 6 now
    Put the old file back and run the same command, or start over on the new one with --fresh.
    """
    try:
        yield
    except Exception as error:
        _check(files, error)
        raise
    _check(files, None)


def map_files(function: Callable[[AbstractFileSystem, InputFile], Found], files: Sequence[InputFile]) -> list[Found]:
    """Apply a function to many files of one filesystem, some at once, and return what it returns in their order.

    Examples
    --------
    >>> _ = Path("a.txt").write_text("one"), Path("b.txt").write_text("two")
    >>> map_files(lambda filesystem, file: filesystem.cat_file(file.url), find_input(Input(url="*.txt")).files)
    [b'one', b'two']
    """
    # One filesystem of each store for all threads: fsspec would give each its own, with connections of its own.
    filesystems: dict[str, AbstractFileSystem] = {}
    for file in files:
        store = _store_of(file.url)
        if store not in filesystems:
            filesystems[store] = open_filesystem(file.url)[0]
    if len(files) == 1:
        return [function(filesystems[_store_of(files[0].url)], files[0])]
    with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
        return list(pool.map(lambda file: function(filesystems[_store_of(file.url)], file), files))


def path_of(filesystem: AbstractFileSystem, file: InputFile) -> str:
    """Return the path of a file inside its filesystem.

    Examples
    --------
    >>> filesystem, _ = open_filesystem("memory://data/a.txt")
    >>> path_of(filesystem, InputFile("memory://data/a.txt", size=3, etag=""))
    '/data/a.txt'
    """
    if is_local(file.url):
        return file.url
    return str(filesystem._strip_protocol(reveal_url(file.url)))


def _store_of(url: str) -> str:
    return "" if is_local(url) else "/".join(url.split("/", 3)[:3])


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


def _find_all(places: Sequence[str]) -> list[InputFile]:
    found: dict[str, InputFile] = {}
    sources: dict[str, str] = {}
    for place in places:
        for file in _find_files(place):
            if file.url in found:
                raise InputError(
                    f"input.url: {file.url} is matched twice, by {sources[file.url]} and by {place}",
                    hint="Narrow one of them, or leave it out: a file is read once.",
                )
            found[file.url], sources[file.url] = file, place
    return list(found.values())


def _find_files(place: str) -> list[InputFile]:
    with explain_errors(place, "list"):
        filesystem, path = open_filesystem(place)
        found = _match_local(path) if is_local(place) else _match(filesystem, path)
        try:
            files = list(_describe(filesystem, found))
        except FileNotFoundError as error:
            raise InputError(
                f"input.url: {error.filename} was listed but does not exist", hint="Is it a link to a deleted file?"
            ) from error
        is_folder = not files and filesystem.isdir(path)
    if is_folder:
        raise InputError(
            f"input.url: {place} has no files of its own: it is empty, or holds only folders",
            hint=f"Files in its folders are found by a glob, such as {place.rstrip('/')}/**/*.parquet.",
        )
    if not files:
        looked = "a glob" if has_magic(path) else "a file or a folder with files"
        raise InputError(
            f"input.url: nothing matches {place} (looked for {looked})",
            hint="Check the path; a relative one starts from the working directory.",
        )
    return files


def _refuse_compressed(files: Sequence[InputFile], name: str) -> None:
    """Refuse files whose compression cannot be read, or not in this format."""
    for file in files:
        compression = compression_of(file.url)
        if _suffix_of(file) in _UNREADABLE:
            raise InputError(
                f"input.url: {file.url} is compressed or packed in a way that cannot be read",
                hint="Unpack it first; .gz, .bz2, .zst and .xz files of jsonl, csv and text are read as they are.",
            )
        if compression and name not in LINE_FORMATS:
            raise InputError(
                f"input.url: {file.url} is compressed, and compressed {name} cannot be read",
                hint="Decompress it first: only jsonl, csv and text may be compressed.",
            )


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
    for file in files:
        if file.url.rpartition("/")[2] in METADATA and file.size > LARGEST_METADATA:
            raise InputError(
                f"input.url: {file.url} has {file.size:,} bytes, and metadata have at most {LARGEST_METADATA:,}",
                hint="Correct the metadata.",
            )
    return tuple(files)


def is_zarr(place: str) -> bool:
    """Whether a Zarr group or array is meant, by its suffix or by what is there.

    Examples
    --------
    >>> is_zarr("s3://bucket/images.zarr"), is_zarr("s3://bucket/rows.jsonl")
    (True, False)
    """
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
    # Unlike Path's, these say no to a name that is too long.
    if os.path.isdir(path):  # noqa: PTH112
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.name[:1] not in ("_", ".")]
    if os.path.exists(path):  # noqa: PTH110
        return [path]
    pattern = read_pattern(path, os.path.exists)
    # Path.glob knows no absolute patterns. A pattern may match one file in several ways.
    return set(iglob(pattern.as_glob(), recursive=True, include_hidden=True)) if pattern.parts else []  # noqa: PTH207


def _match(filesystem: AbstractFileSystem, path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        info = filesystem.info(path)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError) and is_away(error.__cause__):
            raise
        pattern = read_pattern(path, filesystem.exists)
        return filesystem.glob(pattern.as_glob(), detail=True) if pattern.parts else {}
    if info["type"] == "file":
        return {path: info}
    children = {child["name"]: child for child in filesystem.ls(path, detail=True)}
    return {name: child for name, child in children.items() if PurePosixPath(name).name[:1] not in ("_", ".")}


def _describe(
    filesystem: AbstractFileSystem, found: Mapping[str, Mapping[str, Any]] | Iterable[str]
) -> Iterator[InputFile]:
    """Return those that are files, sorted: of a store with what it tells of them, or local ones by their paths."""
    for path in sorted(found):
        if not path.isascii():
            _check_name(path)
        if isinstance(found, Mapping):
            info = found[path]
            if info["type"] == "file":
                yield InputFile(
                    _name_url(filesystem.unstrip_protocol(path)), _size_of(path, info), _tag(filesystem, path, info)
                )
        elif S_ISREG((status := Path(path).stat()).st_mode):
            # fsspec gives the time as a float, which cannot tell nanoseconds.
            yield InputFile(path, status.st_size, f"mtime:{status.st_mtime_ns}")
        elif not S_ISDIR(status.st_mode):  # opening a pipe would wait for its writer, for ever
            raise InputError(
                f"input.url: {path} is a {_tell_kind(status.st_mode)}, not a file", hint="Write it to a file first."
            )


def _name_url(url: str) -> str:
    """Return a URL that a store tells, without the secrets that it was asked with."""
    return protect(conceal_known(url))


def _size_of(path: str, info: Mapping[str, Any]) -> int:
    size = info.get("size")
    if size is None:
        raise InputError(
            f"input.url: {path}: the server does not tell how long it is", hint="Copy the file to a store that does."
        )
    return int(size)


def _tag(filesystem: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> str:
    """Return what changes with the content; a store's own summary of a web page would hold the URL with its secrets."""
    told = [info.get(name) for name in ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "Last-Modified")]
    found = next(filter(None, told), None)
    if found is None:
        found = "none" if path.startswith(("http://", "https://")) else filesystem.checksum(path)
    return str(found).strip('"')


def _tell_kind(mode: int) -> str:
    if S_ISFIFO(mode):
        return "named pipe"
    return "socket" if S_ISSOCK(mode) else "device"


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"input.url: a file's name is not valid UTF-8, and cannot be recorded: {path!r}", hint="Rename the file."
        ) from error


def _suffix_of(file: InputFile) -> str:
    """Return the suffix that tells the format: of a compressed file, the one before its last."""
    # PurePosixPath takes ten times as long, which a million files show.
    name = file.url.rpartition("/")[2]
    stem, dot, suffix = name.removesuffix(name[len(name) - len(compression_of(name)) :]).rpartition(".")
    return f"{dot}{suffix.lower()}" if stem else ""
