"""What Zarr arrays may make of few bytes: bounded by their metadata, and chunk by chunk before one is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation

from daskinfer.errors import InputError
from daskinfer.storage.objects.plain_store import COMPRESSORS, METADATA, expands_beyond
from daskinfer.units import format_amount

_LARGEST_ROW = 1 << 30  # bytes
_LARGEST_CHUNK = 1 << 32
_LARGEST_PARTITION = 1 << 34
_MOST_CHUNKS = 100_000
# Of a shard: its index is read whole, and Zarr goes through it chunk by chunk.
_MOST_IN_SHARD = 1 << 20
_MOST_CODECS = 16
# Bytes that a chunk of texts may become: of numbers, the shape of a chunk says how many.
_LARGEST_TEXTS = 256 << 20
_EXPANSION = 200
_NO_CHUNK = np.iinfo(np.uint64).max


def refuse_absurd(array: zarr.Array[Any], where: str) -> None:
    """Refuse what metadata claim and no memory holds: a chunk is decoded whole, whatever lies in it.

    Examples
    --------
    >>> refuse_absurd(zarr.zeros(shape=(4, 3), chunks=(2, 3)), "array 'x'")
    >>> refuse_absurd(zarr.zeros(shape=(4, 10**6), chunks=(1, 1)), "array 'x'")
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: array 'x': its metadata claim 1,000,000 chunks a row, and at most 100,000 are read
    Correct the metadata, or write the array in larger chunks.
    """
    item = max(1, array.dtype.itemsize)
    row, chunk = (item * math.prod(map(int, shape)) for shape in (array.shape[1:], array.shards or array.chunks))
    if row > _LARGEST_ROW or chunk > _LARGEST_CHUNK:
        what, size, most = ("row", row, _LARGEST_ROW) if row > _LARGEST_ROW else ("chunk", chunk, _LARGEST_CHUNK)
        raise InputError(
            f"{where}: its metadata claim {size:,} bytes for a {what}; the limit is {most:,}",
            hint="Correct the metadata, or write the array in smaller chunks.",
        )
    if len(_codecs_of(array)) > _MOST_CODECS or len(_compressors_of(array)) > 1:
        raise InputError(
            f"{where}: its metadata name {len(_codecs_of(array)):,} codecs, {len(_compressors_of(array)):,} of which compress",
            hint=f"Write the array with one compressor and at most {_MOST_CODECS} codecs.",
        )
    chunks = math.prod(-(-size // length) for size, length in zip(array.shape[1:], array.chunks[1:], strict=True))
    if chunks > _MOST_CHUNKS:
        raise InputError(
            f"{where}: its metadata claim {chunks:,} chunks a row, and at most {_MOST_CHUNKS:,} are read",
            hint="Correct the metadata, or write the array in larger chunks.",
        )
    _refuse_strange_shards(array, where)


def refuse_large_partition(array: zarr.Array[Any], partition_rows: int, where: str) -> None:
    """Refuse rows that cannot be held together: missing chunks are read as values all the same.

    Examples
    --------
    >>> refuse_large_partition(zarr.zeros(shape=(4, 3), chunks=(2, 3)), 4, "array 'x'")
    >>> refuse_large_partition(zarr.zeros(shape=(10**12,), chunks=(100,)), 10**11, "array 'x'")
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: array 'x': its metadata claim 800,000,000,000 bytes a partition of 100,000,000,000 rows, ...
    """
    size = min(partition_rows, array.shape[0]) * array.dtype.itemsize * math.prod(map(int, array.shape[1:]))
    if size > _LARGEST_PARTITION:
        raise InputError(
            f"{where}: its metadata claim {size:,} bytes a partition of {format_amount(partition_rows, 'row')}, and at most "
            f"{_LARGEST_PARTITION:,} are read at once",
            hint="Lower input.partition_rows, or correct the metadata.",
        )


class ChunkBounds:
    """Refuses chunks of opened arrays that become more than a chunk of theirs can be.

    Parameters
    ----------
    root
        URL of the group, or of the single array.
    arrays
        The arrays by column; more may be opened later.

    Examples
    --------
    >>> import zlib
    >>> array = zarr.create_array({}, shape=(4,), chunks=(4,), dtype="f4", compressors=[zarr.codecs.GzipCodec()])
    >>> bounds = ChunkBounds("numbers.zarr", {"x": array})
    >>> bounds("c/0", zlib.compress(bytes(16), wbits=31), None)
    >>> bounds("c/0", zlib.compress(bytes(1_000_000), wbits=31), None)
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: numbers.zarr/c/0: 1,003 bytes become more than the 65,556 that a chunk can have
    Write the chunk again.
    """

    def __init__(self, root: str, arrays: Mapping[str, zarr.Array[Any]]) -> None:
        self._root = root
        self._arrays = arrays

    def __call__(self, key: str, data: bytes, part: ByteRequest | None) -> None:
        """Look at the bytes of an object, or of a part of it, before they are decoded."""
        array = next((each for each in self._arrays.values() if not each.path or key.startswith(f"{each.path}/")), None)
        if array is None or key.rpartition("/")[2] in METADATA:
            return
        chunk = array.dtype.itemsize * math.prod(map(int, array.chunks))
        for piece in _chunks_in(array, data, part, f"{self._root}/{key}"):
            is_text = array.dtype.kind in "TO"
            most = max(_LARGEST_TEXTS, _EXPANSION * len(piece)) if is_text else chunk + chunk // 4 + (1 << 16)
            if any(expands_beyond(name, piece, most) for name in _compressors_of(array)):
                raise InputError(
                    f"{self._root}/{key}: {len(piece):,} bytes become more than the {most:,} that a chunk can have",
                    hint="Write the chunk again.",
                )


def _refuse_strange_shards(array: zarr.Array[Any], where: str) -> None:
    """Refuse shards whose chunks cannot be found and looked at one by one."""
    sharding = _sharding_of(array)
    codecs = [] if array.metadata.zarr_format == 2 else [*array.metadata.codecs, *(sharding.codecs if sharding else ())]
    if sum(isinstance(codec, ShardingCodec) for codec in codecs) > (sharding is not None):
        raise InputError(
            f"{where}: its metadata name further codecs around its shards, or shards within them",
            hint="Write the array with shards of chunks, and compress the chunks.",
        )
    if sharding is None:
        return
    if {type(codec) for codec in sharding.index_codecs} - {BytesCodec, Crc32cCodec} or not sharding.index_codecs:
        raise InputError(
            f"{where}: the index of its shards is neither plain nor followed by a crc32c alone",
            hint="Write the array with the usual index_codecs, bytes and crc32c.",
        )
    if (count := _chunks_per_shard(array)) > _MOST_IN_SHARD:
        raise InputError(
            f"{where}: its metadata claim {count:,} chunks a shard, and at most {_MOST_IN_SHARD:,} are read",
            hint="Correct the metadata, or write the array in larger chunks.",
        )


def _chunks_in(array: zarr.Array[Any], data: bytes, part: ByteRequest | None, where: str) -> Iterator[bytes]:
    """Return the compressed chunks in an object or a part of it: a shard holds many, and an index of them."""
    sharding = _sharding_of(array)
    if sharding is None:
        yield data
        return
    if not data:  # Zarr would take it for one that is not there, and read fill values
        raise InputError(f"{where}: it has no bytes", hint="Write it again.")
    checksums = sum(isinstance(codec, Crc32cCodec) for codec in sharding.index_codecs)
    length = 16 * _chunks_per_shard(array) + 4 * checksums
    at_start = sharding.index_location == ShardingCodecIndexLocation.start
    if part is not None:
        is_index = isinstance(part, SuffixByteRequest) or (
            at_start and isinstance(part, RangeByteRequest) and part.start == 0
        )
        if not is_index:
            yield data
        return
    if len(data) < length:
        return  # Zarr says that it is damaged
    stored = data[:length] if at_start else data[-length:]
    endian = next((codec.endian for codec in sharding.index_codecs if isinstance(codec, BytesCodec)), None)
    order = ">u8" if endian is not None and endian.value == "big" else "<u8"
    index = np.frombuffer(stored[: length - 4 * checksums], order).reshape(-1, 2)
    for begin, size in index[index[:, 0] != _NO_CHUNK].tolist():
        yield data[begin : begin + size]


def _sharding_of(array: zarr.Array[Any]) -> ShardingCodec | None:
    """Return how the chunks lie in shards, where that is all that its metadata say of an object."""
    codecs = () if array.metadata.zarr_format == 2 else array.metadata.codecs
    return codecs[0] if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec) else None


def _chunks_per_shard(array: zarr.Array[Any]) -> int:
    return math.prod(shard // chunk for shard, chunk in zip(array.shards or array.chunks, array.chunks, strict=True))


def _codecs_of(array: zarr.Array[Any]) -> list[str]:
    codecs = [*array.filters, *array.compressors]
    return [getattr(codec, "codec_id", None) or str(codec.to_dict()["name"]) for codec in codecs]


def _compressors_of(array: zarr.Array[Any]) -> list[str]:
    return [name for name in _codecs_of(array) if name.removeprefix("numcodecs.") in COMPRESSORS]
