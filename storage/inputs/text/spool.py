"""Text files that are compressed or not in UTF-8, as plain UTF-8 on this machine, so that any part of them can be read.

Each is written out once for all processes of a machine, whole or not at all; what was used longest ago makes room.
"""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daskinfer.errors import InputError, StorageError
from daskinfer.ids import canonical_json
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.rows import InputFile
from daskinfer.storage.inputs.compression import compression_of, open_decompressed
from daskinfer.storage.inputs.files import unchanged
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.objects.local_files import temporary_file
from daskinfer.storage.objects.store_errors import ShortRead, explain_errors
from daskinfer.storage.tensors.node_cache import cache_folder

LIMIT_VARIABLE = "DASKINFER_SPOOL_BYTES"
UNDECODABLE = 0xFF
"""Byte in place of what is no text in a file's encoding; UTF-8 has no such byte, so its row is refused."""

_LARGEST = 200 * 10**9
_DISK_SHARE = 0.5
_EXPANDED = 256 << 20
_EXPANSION = 200
"""Bytes for each of a compressed file, beyond the first `_EXPANDED`; rows of text become ten to a hundred."""
_BLOCK = 1 << 20
_ATTEMPTS = 3
_VERSION = 1  # of what is written
_DAY_SECONDS = 86_400.0


def size_of_text(file: InputFile) -> int:
    """Return how many bytes a file's text is in UTF-8.

    Examples
    --------
    >>> size_of_text(InputFile("a.txt", size=12, etag=""))
    12
    """
    return file.size if _is_plain(file) else _locate(file).stat().st_size


def read_text(file: InputFile, begin: int, end: int) -> bytes:
    r"""Return a part of a file's text, in UTF-8.

    Raises
    ------
    InputError
        It cannot be decompressed.
    StorageError
        It cannot be read, or this machine has no room for its text.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.storage.inputs.files import find_input
    >>> _ = Path("a.txt").write_bytes("grüße\n".encode())
    >>> read_text(find_input(Input(url="a.txt")).files[0], 0, 4)
    b'gr\xc3\xbc'
    """
    if _is_plain(file):
        return read_bytes(file.url, begin, end)
    for attempt in range(_ATTEMPTS):
        try:
            return read_bytes(str(_locate(file)), begin, end)
        except (FileNotFoundError, ShortRead):  # it has just made room for others
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _is_plain(file: InputFile) -> bool:
    return not file.encoding and not compression_of(file.url)


def _locate(file: InputFile) -> Path:
    """Return where the text of a file is, after writing it out if need be."""
    folder = _find_folder()
    identity = canonical_json([_VERSION, file.url, file.size, file.etag, file.encoding])
    path = folder / hashlib.sha256(identity).hexdigest()
    with explain_errors(str(path), "write"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _touch(path):
            return path
        with _locked(folder / f"{path.name[:2]}.lock"):
            if _touch(path):  # another process has written it meanwhile
                return path
            limit = _find_limit(folder)
            with unchanged([file]), temporary_file(path, _bounded(_transcode(file), limit, file)) as temporary:
                _make_room(folder, limit - temporary.stat().st_size)
                temporary.replace(path)
    return path


def _transcode(file: InputFile) -> Iterator[bytes]:
    codecs.register_error("daskinfer.undecodable", _mark_undecodable)
    decoder = codecs.getincrementaldecoder(file.encoding)("daskinfer.undecodable") if file.encoding else None
    with open_decompressed(file) as stream:
        while block := stream.read(_BLOCK):
            yield decoder.decode(block).encode(errors="daskinfer.undecodable") if decoder else block
    if decoder:
        yield decoder.decode(b"", final=True).encode(errors="daskinfer.undecodable")


def _mark_undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Put a lone surrogate in place of bytes that are no text, and `UNDECODABLE` in place of that."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return bytes([UNDECODABLE]) * (error.end - error.start), error.end
    raise error


def _bounded(pieces: Iterator[bytes], limit: int, file: InputFile) -> Iterator[bytes]:
    """Pass the pieces on; refuse what no disk should be filled with, as soon as it can be told."""
    url, is_compressed = file.url, bool(compression_of(file.url))
    most, longest = max(_EXPANDED, _EXPANSION * file.size), LONGEST_RECORD.get()
    written = line = 0
    for piece in pieces:
        written += len(piece)
        last = piece.rfind(b"\n")
        line = line + len(piece) if last < 0 else len(piece) - last - 1
        if is_compressed and (line > longest or written > most):
            what = f"a line of more than {longest:,} bytes" if line > longest else f"more than {most:,} bytes"
            raise InputError(
                f"{url} has {file.size:,} bytes, and expands to {what}, which no file of rows does",
                hint="Decompress it yourself and look at what is in it.",
            )
        if written > limit:
            raise StorageError(
                f"the text of {url} is longer than {limit:,} bytes, which this machine may keep of texts that are "
                "compressed or not in UTF-8",
                hint=f"Split the file, write it as plain UTF-8, or allow more with {LIMIT_VARIABLE}.",
            )
        yield piece


def _find_folder() -> Path:
    try:
        return cache_folder() / "texts"
    except RuntimeError:  # containers run under ids without a home
        return Path(tempfile.gettempdir()) / f"daskinfer-{os.getuid()}" / "texts"


def _find_limit(folder: Path) -> int:
    told = os.environ.get(LIMIT_VARIABLE)
    if told is not None and not told.isdecimal():
        raise StorageError(f"{LIMIT_VARIABLE}={told!r} is not a number of bytes", hint="Give one, or unset it.")
    if told is not None:
        return int(told)
    held = sum(size for _, size in _list_used(folder).values())
    return min(_LARGEST, int(_DISK_SHARE * (shutil.disk_usage(folder).free + held)))


def _make_room(folder: Path, limit: int) -> None:
    """Remove what was used longest ago, until no more than the limit is left; and what killed writers left."""
    with _locked(folder / "room.lock"):
        used = _list_used(folder)
        total = sum(size for _, size in used.values())
        for path in sorted(used, key=used.__getitem__):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= used[path][1]
        for left in folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _DAY_SECONDS:
                    left.unlink()


def _list_used(folder: Path) -> dict[Path, tuple[int, int]]:
    used = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if not path.suffix:
                status = path.stat()
                used[path] = (status.st_mtime_ns, status.st_size)
    return used


def _touch(path: Path) -> bool:
    """Mark a text as used now; say whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        # Let go of by the system when the process ends, however it does.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
