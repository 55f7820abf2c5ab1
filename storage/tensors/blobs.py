"""Weights as bytes: what a safetensors blob holds, and reading a whole layer group with its digests checked."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise

from blake3 import blake3

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.ids import parse_json
from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.storage.objects.filesystem import open_reader, read_bytes, size_of
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.urls import is_local, join_url
from daskinfer.storage.tensors.range_reads import DAMAGED, stream_tensors

_RANGE_BYTES = 32 * 2**20
_CONNECTIONS = 8


def read_header(data: bytes, group: str) -> tuple[TensorEntry, ...]:
    """Return the tensors of a complete safetensors file, with their digests, in file order.

    Raises
    ------
    CheckpointError
        Where the bytes are not a whole safetensors file.

    Examples
    --------
    >>> import numpy as np
    >>> from safetensors.numpy import save
    >>> data = save({"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)})
    >>> [(entry.name, entry.dtype, entry.shape, entry.end - entry.begin) for entry in read_header(data, "layer")]
    [('bias', 'F32', (2,), 8), ('weight', 'F32', (2, 2), 16)]
    >>> read_header(data[:-1], "layer")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: layer group layer is not a whole safetensors file: ...
    """
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = parse_json(data[8:start])
        header.pop("__metadata__", None)
        view = memoryview(data)[start:]
        entries = [
            TensorEntry(
                name=name,
                blake3=blake3(view[slice(*entry["data_offsets"])]).hexdigest(),
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                begin=start + entry["data_offsets"][0],
                end=start + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"layer group {group} is not a safetensors file: {error}") from error
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    borders = [start, *(border for entry in entries for border in (entry.begin, entry.end)), len(data)]
    # The format has neither holes nor overlaps, so every tensor begins where the one before it ends.
    if any(first != second for first, second in list(pairwise(borders))[::2]) or borders != sorted(borders):
        raise CheckpointError(
            f"layer group {group} is not a whole safetensors file: its tensors do not fill {len(data)} bytes"
        )
    return tuple(entries)


def read_group(registry_url: str, group: LayerGroup) -> bytes:
    """Return a layer group's whole blob, verified against its manifest.

    Remote blobs come as concurrent ranges and are hashed as they arrive. A group that was published by reference has no
    blob: its tensors' bytes come one after the other, in the group's order.

    Raises
    ------
    CorruptBlob
        Where the blob is missing, has another length, or another digest.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.storage.objects.filesystem import replace_bytes
    >>> from daskinfer.testing.fixtures.groups import store_group
    >>> group = store_group(".", "layer.0", {"weight": np.ones((2, 2), np.float32)})
    >>> len(read_group(".", group)) == group.size
    True
    >>> replace_bytes(group.blob, bytes(group.size))
    >>> read_group(".", group)
    Traceback (most recent call last):
        ...
    daskinfer.errors.CorruptBlob: the blob of layer group layer.0 is damaged: ./blobs/...
    """
    if group.blob is None:
        return _read_tensors(registry_url, group)
    url = join_url(registry_url, group.blob)
    digest = hashlib.sha256()
    pieces = []
    try:
        if is_local(url) or group.size <= _RANGE_BYTES:
            if is_local(url) and (size := size_of(url)) != group.size:
                raise _wrong_size(group, size, url)  # before so many bytes are read
            pieces.append(read_bytes(url))
            digest.update(pieces[0])
        else:
            read = open_reader(url)
            bounds = [*range(0, group.size, _RANGE_BYTES), group.size]
            with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="blob") as pool:
                for piece in pool.map(lambda ends: read(*ends), pairwise(bounds)):
                    digest.update(piece)
                    pieces.append(piece)
    except FileNotFoundError as error:
        raise CorruptBlob(f"the blob of layer group {group.name} is gone: {url}", hint=DAMAGED) from error
    except ShortRead as error:
        raise CorruptBlob(
            f"the blob of layer group {group.name} is too short: {error.message}", hint=DAMAGED
        ) from error
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) != group.size:
        raise _wrong_size(group, len(data), url)
    if digest.hexdigest() != group.sha256:
        raise CorruptBlob(
            f"the blob of layer group {group.name} is damaged: {url}\n"
            f"  sha256 {digest.hexdigest()}\n  manifest says {group.sha256}",
            hint=DAMAGED,
        )
    return data


def _wrong_size(group: LayerGroup, size: int, url: str) -> CorruptBlob:
    return CorruptBlob(
        f"the blob of layer group {group.name} has {size} bytes, its manifest says {group.size}: {url}", hint=DAMAGED
    )


def is_intact(url: str, size: int, sha256: str) -> bool:
    """Whether a blob is there with all its bytes; they are read in pieces and not kept.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.testing.fixtures.groups import store_group
    >>> group = store_group(".", "layer.0", {"weight": np.ones((2, 2), np.float32)})
    >>> is_intact(group.blob, group.size, group.sha256), is_intact("absent", group.size, group.sha256)
    (True, False)
    """
    digest = hashlib.sha256()
    try:
        read = open_reader(url)
        for bounds in pairwise([*range(0, size, _RANGE_BYTES), size]):
            digest.update(read(*bounds))
        whole = size_of(url) == size
    except (FileNotFoundError, ShortRead):
        return False
    return whole and digest.hexdigest() == sha256


def _read_tensors(registry_url: str, group: LayerGroup) -> bytes:
    ends = list(accumulate((entry.end - entry.begin for entry in group.tensors), initial=0))
    data = bytearray(ends[-1])
    view = memoryview(data)
    slices = zip(group.tensors, pairwise(ends), strict=True)
    targets = {entry.name: _Place(view[begin:end]) for entry, (begin, end) in slices}
    stream_tensors(registry_url, [(group, entry) for entry in group.tensors], targets)
    return bytes(data)


@dataclass(frozen=True, slots=True)
class _Place:
    memory: memoryview

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        return self.memory[offset : offset + nbytes]

    def filled(self, offset: int, nbytes: int) -> None:
        """Nothing is left to do."""
