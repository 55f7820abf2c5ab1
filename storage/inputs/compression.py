"""Compressed files as streams of what is in them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

import pyarrow as pa

from daskinfer.errors import InputError
from daskinfer.spec.rows import InputFile
from daskinfer.storage.objects.filesystem import open_filesystem
from daskinfer.storage.objects.store_errors import explain_errors

COMPRESSED_MARKS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_BLOCK = 1 << 20
_FAILURES = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


class Stream(Protocol):
    """What can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


class _Members:
    """What is in the members of a file, one after another; Python's own readers drop a damaged one after the first."""

    def __init__(self, stream: IO[bytes], make: Callable[[], Any], padding: bytes = b"") -> None:
        self._stream = stream
        self._make = make
        self._padding = padding
        self._member: Any = None
        self._left = b""

    def read(self, size: int) -> bytes:
        while True:
            if not self._left and (self._member is None or self._member.needs_input):
                self._left = self._stream.read(_BLOCK)
                if not self._left and self._member is not None:
                    raise EOFError("it ends before its content does")
                if not self._left:
                    return b""
            if self._member is None:
                self._left = self._left.lstrip(self._padding)
                if not self._left:
                    continue
                self._member = self._make()
            data: bytes = self._member.decompress(self._left, size)
            self._left = b""
            if self._member.eof:
                self._left, self._member = self._member.unused_data, None
            if data:
                return data


def _open_zstd(stream: IO[bytes]) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    ".bz2": lambda stream: _Members(stream, bz2.BZ2Decompressor),
    ".xz": lambda stream: _Members(stream, lzma.LZMADecompressor, padding=b"\0"),
    ".zst": _open_zstd,
}


def compression_of(url: str) -> str:
    """Return the suffix that says how a file is compressed; "" where it is not.

    Examples
    --------
    >>> compression_of("data/rows.jsonl.GZ"), compression_of("data.gz/rows.jsonl")
    ('.gz', '')
    """
    name = url.rpartition("/")[2].lower()
    return next((suffix for suffix in _OPENERS if name.endswith(suffix)), "")


@contextmanager
def open_decompressed(file: InputFile) -> Iterator[Stream]:
    """Open a file for reading what is in it.

    Raises
    ------
    InputError
        It is damaged, cut short, or not compressed as its name says.

    Examples
    --------
    >>> from pathlib import Path
    >>> size = Path("rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}'))
    >>> with open_decompressed(InputFile("rows.jsonl.gz", size, etag="")) as stream:
    ...     stream.read(100)
    b'{"text": "a"}'
    """
    compression = compression_of(file.url)
    with explain_errors(file.url, "read"):
        filesystem, path = open_filesystem(file.url)
        with filesystem.open(path, "rb") as raw:
            if not compression:
                yield raw
                return
            yield _Checked(file.url, compression, _OPENERS[compression], _Reader(raw))


class _StoreFailed(Exception):
    """The file could not be read, whatever is in it."""


class _Reader:
    """The compressed bytes; an error of the store is told from one of the content."""

    closed = False

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        try:
            return self._raw.read(size)
        except Exception as error:
            raise _StoreFailed from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Leave it to whoever opened the file."""


class _Checked:
    """Decompressed bytes, of which damage is told with the file's name."""

    def __init__(self, url: str, compression: str, opener: Callable[[Any], Any], raw: _Reader) -> None:
        self._url = url
        self._compression = compression
        self._opener = opener
        self._raw = raw
        self._stream: Any = None

    def read(self, size: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = self._opener(self._raw)
            return bytes(self._stream.read(size))
        except _StoreFailed as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        except _FAILURES as error:
            raise InputError(
                f"{self._url} cannot be decompressed as its suffix {self._compression} says: {error}",
                hint="It is damaged, cut short, or compressed otherwise; make it anew.",
            ) from error
