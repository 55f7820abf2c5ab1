"""The files of an input: which they are, what format they have, and whether they changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from daskinfer.errors import InputError
from daskinfer.spec.rows import InputFile
from daskinfer.storage.filesystem import absolute_url, explain_errors, is_local, open_filesystem

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}


def find_files(url: str) -> list[InputFile]:
    """List the files that an input URL names, sorted by path.

    Parameters
    ----------
    url
        A file, a glob, or a folder, whose direct files are taken except those that begin with `_` or a dot.

    Raises
    ------
    InputError
        Where it names no file, or only compressed ones.
    """
    place = absolute_url(url)
    with explain_errors(place, "list"):
        filesystem, path = open_filesystem(place)
        infos = _match(filesystem, path)
    if not infos:
        looked = "a glob" if has_magic(path) else "a file or a folder with files"
        raise InputError(
            f"input.url: nothing matches {place} (looked for {looked})",
            hint="Check the path; a relative one starts from the working directory.",
        )
    files = [_describe(filesystem, place, name, infos[name]) for name in sorted(infos)]
    for file in files:
        if PurePosixPath(file.url).suffix in _COMPRESSED:
            raise InputError(
                f"input.url: {file.url} is compressed, and a compressed file cannot be read from its middle",
                hint="Decompress it first, or convert it to parquet, which compresses by itself.",
            )
    return files


def choose_format(wanted: str, files: list[InputFile]) -> str:
    """Return the format of the files: the one that the recipe says, else the one of their suffix.

    Raises
    ------
    InputError
        Where the suffixes are unknown or do not agree.
    """
    if wanted != "auto":
        return wanted
    by_suffix = {PurePosixPath(file.url).suffix.lower(): file.url for file in files}
    formats = {FORMATS.get(suffix) for suffix in by_suffix}
    found = formats.pop() if len(formats) == 1 else None
    if found is None:
        listed = ", ".join(f"'{suffix}' ({url})" for suffix, url in sorted(by_suffix.items())[:4])
        raise InputError(
            f"input.format: auto cannot tell one format from the suffixes {listed}",
            hint="Set input.format to jsonl, csv, text or parquet, or narrow input.url.",
        )
    return found


@contextmanager
def unchanged(file: InputFile) -> Iterator[None]:
    """Fail where the file is not, after the reading of it, what it was when the job was planned."""
    try:
        yield
    except Exception as error:
        _check(file, error)
        raise
    _check(file, None)


def _check(file: InputFile, cause: Exception | None) -> None:
    with explain_errors(file.url, "look at"):
        try:
            filesystem, path = open_filesystem(file.url)
            now = _describe(filesystem, file.url, path, filesystem.info(path))
            if (now.size, now.etag) == (file.size, file.etag):
                return
            what = f"{file.size:,} bytes then, {now.size:,} now" if now.size != file.size else "it was written again"
        except FileNotFoundError:
            what = "it is gone"
    raise InputError(
        f"{file.url} changed while the job ran: {what}",
        hint="Put the old file back and run the same command, or start over on the new one with --fresh.",
    ) from cause


def _match(filesystem: AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        found = filesystem.glob(path, detail=True) if has_magic(path) else {}
    else:
        if info["type"] == "file":
            return {path: info}
        found = {child["name"]: child for child in filesystem.ls(path, detail=True)}
        found = {name: child for name, child in found.items() if PurePosixPath(name).name[:1] not in ("_", ".")}
    return {name: child for name, child in found.items() if child["type"] == "file"}


def _describe(filesystem: AbstractFileSystem, url: str, path: str, info: dict[str, Any]) -> InputFile:
    if is_local(url):
        # fsspec gives the time as a float, which cannot tell nanoseconds.
        status = Path(path).stat()
        return InputFile(url=path, size=status.st_size, etag=f"mtime:{status.st_mtime_ns}")
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or filesystem.checksum(path)
    return InputFile(url=filesystem.unstrip_protocol(path), size=int(info["size"]), etag=str(etag).strip('"'))
