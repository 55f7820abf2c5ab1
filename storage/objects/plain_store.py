"""Zarr stores whose objects are looked at before they are opened and before they are decompressed."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import os
import struct
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from daskinfer.ids import parse_json, refuse_dense
from daskinfer.storage.objects.filesystem import reveal_url
from daskinfer.storage.objects.local_files import refuse_special
from daskinfer.storage.objects.store_errors import NotOurs
from daskinfer.storage.objects.urls import absolute_url, is_local

METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
LARGEST_METADATA = 8 << 20
_PIECE = 1 << 20
_SHORT = frozenset({"shape", "shapes", "chunk_shape", "chunks", "codecs", "index_codecs", "filters", "dimension_names"})
_LONGEST = 64
Check = Callable[[str, bytes, ByteRequest | None], None]


def open_store(url: str, check: Check = lambda key, data, part: None) -> Store:
    """Open a folder for reading.

    Parameters
    ----------
    url
        Where it is.
    check
        Called with the key and the bytes of every object or part of one that is read, and which part it is; raises
        where they must not be decoded.

    Examples
    --------
    >>> import numpy as np
    >>> import zarr
    >>> zarr.save_array("numbers.zarr", np.arange(3))
    >>> zarr.open_array(open_store("numbers.zarr"), mode="r")[:]
    array([0, 1, 2])
    """
    if is_local(url):
        return _PlainStore(LocalStore(absolute_url(url), read_only=True), absolute_url(url), check)
    store = FsspecStore.from_url(reveal_url(url), storage_options={"use_listings_cache": False}, read_only=True)
    return _PlainStore(store, "", check)


class _PlainStore(WrapperStore[Store]):
    """A store that opens no pipes and devices, for whoever opens one waits for ever."""

    def __init__(self, store: Store, folder: str, check: Check) -> None:
        super().__init__(store)
        self._folder = folder
        self._check = check

    def __repr__(self) -> str:
        return repr(self._store)

    def _with_store(self, store: Store) -> Any:
        return type(self)(store, self._folder, self._check)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object, or a part of it."""
        self._refuse_special(key)
        data = await self._store.get(key, prototype or default_buffer_prototype(), byte_range)
        if data is not None:
            await asyncio.to_thread(self._look_at, key, data.to_bytes(), byte_range)
        return data

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of objects."""
        wanted = list(key_ranges)
        for key, _ in wanted:
            self._refuse_special(key)
        found = await self._store.get_partial_values(prototype, wanted)
        for (key, part), data in zip(wanted, found, strict=True):
            if data is not None:
                await asyncio.to_thread(self._look_at, key, data.to_bytes(), part)
        return found

    def _look_at(self, key: str, data: bytes, part: ByteRequest | None) -> None:
        if part is None:
            refuse_dense_metadata(key, data)
        self._check(key, data, part)

    def _refuse_special(self, key: str) -> None:
        path = f"{self._folder}/{key}"
        if not self._folder or not os.path.lexists(path):
            return
        refuse_special(path)
        if Path(path).is_dir():  # Zarr would take it for an object that is not there, and read fill values
            raise NotOurs(
                f"{path} is a folder, where a chunk is expected", hint="Put the file back, or write it again."
            )
        if key.rpartition("/")[2] in METADATA and (size := Path(path).stat().st_size) > LARGEST_METADATA:
            raise NotOurs(
                f"{path} has {size:,} bytes, and metadata have at most {LARGEST_METADATA:,}",
                hint="Correct the metadata.",
            )


def refuse_dense_metadata(key: str, data: bytes) -> None:
    """Refuse metadata that would take many times their own bytes of memory.

    Examples
    --------
    >>> refuse_dense_metadata("a/zarr.json", b'{"shape": [2, 3]}')
    >>> refuse_dense_metadata("a/zarr.json", json.dumps({"shape": [1] * 1000}).encode())
    Traceback (most recent call last):
        ...
    daskinfer.storage.objects.store_errors.NotOurs: a/zarr.json: it has 1,000 shape, and at most 64 are read
    Correct the metadata.
    """
    if key.rpartition("/")[2] in METADATA:
        try:
            refuse_dense(data)
            _refuse_long(parse_json(data))
        except json.JSONDecodeError:
            return  # Zarr says what is wrong
        except ValueError as error:
            raise NotOurs(f"{key}: {error}", hint="Correct the metadata.") from error


def _refuse_long(metadata: Any) -> None:
    """Refuse axes and codecs by the thousand, over which Zarr takes minutes."""
    left = [metadata]
    while left:
        found = left.pop()
        for name, value in found.items() if isinstance(found, dict) else ():
            if name in _SHORT and isinstance(value, list) and len(value) > _LONGEST:
                raise ValueError(f"it has {len(value):,} {name}, and at most {_LONGEST} are read")
            if name != "attributes":
                left += value if isinstance(value, list) else [value]


def expands_beyond(codec: str, data: bytes, most: int) -> bool:
    """Whether a chunk becomes more than `most` bytes, without holding them; of codecs that are not known, never.

    Parameters
    ----------
    codec
        Its name in Zarr's metadata: `gzip`, `zstd`, `blosc`, `numcodecs.lz4`...
    data
        The chunk as it is stored.
    most
        Bytes that it may become.

    Examples
    --------
    >>> chunk = gzip.compress(bytes(1_000_000))
    >>> len(chunk) < 2_000, expands_beyond("gzip", chunk, most=1_000_000), expands_beyond("gzip", chunk, most=1_000)
    (True, False, True)
    """
    name = codec.removeprefix("numcodecs.")
    if name in _CLAIMS:
        place = _CLAIMS[name]
        return len(data) >= place + 4 and int(struct.unpack_from("<I", data, place)[0]) > most
    if name not in _STREAMS:
        return False
    written = 0
    try:
        stream = _STREAMS[name](data)
        while piece := stream.read(_PIECE):
            written += len(piece)
            if written > most:
                return True
    except (zlib.error, OSError, EOFError, lzma.LZMAError, pa.ArrowException):
        pass  # whoever decodes it says what is wrong with it
    return False


class _Zlib:
    """zlib's stream, which has no reader of files."""

    def __init__(self, data: bytes) -> None:
        self._stream = zlib.decompressobj()
        self._left = data

    def read(self, size: int) -> bytes:
        """Return at most so many bytes."""
        piece = self._stream.decompress(self._left, size)
        self._left = self._stream.unconsumed_tail
        return piece


# Where a chunk says how many bytes it becomes: its reader takes no more.
_CLAIMS = {"blosc": 4, "lz4": 0}
_STREAMS: dict[str, Callable[[bytes], Any]] = {
    "gzip": lambda data: gzip.GzipFile(fileobj=io.BytesIO(data)),
    "zlib": _Zlib,
    "bz2": lambda data: bz2.BZ2File(io.BytesIO(data)),
    "lzma": lambda data: lzma.open(io.BytesIO(data)),  # noqa: SIM115
    "zstd": lambda data: pa.CompressedInputStream(pa.BufferReader(data), "zstd"),
}
COMPRESSORS = frozenset((*_CLAIMS, *_STREAMS))
"""What `expands_beyond` knows."""
