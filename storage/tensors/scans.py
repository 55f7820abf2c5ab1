"""Reading everything that a manifest names and hashing it anew, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from blake3 import blake3

from daskinfer.spec.snapshot import LayerGroup, PlainFile
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.streams import read_pieces
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.tensors.range_reads import DamagedTensor, stream_tensors

Count = Callable[[int], None]
"""Told of every number of bytes that has been read."""


def scan_file(registry_url: str, piece: PlainFile, count: Count) -> list[str]:
    """Return what is wrong with a configuration or tokenizer file's bytes.

    Examples
    --------
    >>> import hashlib
    >>> from pathlib import Path
    >>> _ = Path("config.json").write_bytes(b"{}")
    >>> file = PlainFile(path="config.json", size=2, sha256=hashlib.sha256(b"{}").hexdigest(), blob="config.json")
    >>> scan_file(".", file, lambda nbytes: None)
    []
    >>> Path("config.json").unlink()
    >>> scan_file(".", file, lambda nbytes: None)
    ['it is gone']
    """
    digest = hashlib.sha256()
    try:
        for data in read_pieces(join_url(registry_url, piece.blob), 0, piece.size):
            digest.update(data)
            count(len(data))
    except (FileNotFoundError, ShortRead) as error:
        return [_describe(error)]
    return [] if digest.hexdigest() == piece.sha256 else [f"its sha256 is {digest.hexdigest()}"]


def scan_group(registry_url: str, group: LayerGroup, count: Count) -> list[str]:
    """Return what is wrong with a layer group's bytes: the tensors that are damaged, or the blob around them.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.storage.objects.filesystem import read_bytes, replace_bytes
    >>> from daskinfer.testing.fixtures.groups import store_group
    >>> group = store_group(".", "layer.0", {"weight": np.ones((2, 2), np.float32)})
    >>> scan_group(".", group, lambda nbytes: None)
    []
    >>> replace_bytes(group.blob, read_bytes(group.blob)[:-1] + b"x")
    >>> scan_group(".", group, lambda nbytes: None)
    ['tensor weight is damaged']
    """
    if group.blob is None:
        return list(_scan_references(registry_url, group, count))
    digest = hashlib.sha256()
    hashers = [(entry, blake3()) for entry in sorted(group.tensors, key=lambda entry: entry.begin)]
    position = first = 0
    try:
        for data in read_pieces(join_url(registry_url, group.blob), 0, group.size):
            digest.update(data)
            view, end = memoryview(data), position + len(data)
            # Tensors lie one after the other, so those that end before this piece need not be looked at again.
            while first < len(hashers) and hashers[first][0].end <= position:
                first += 1
            for entry, hasher in hashers[first:]:
                if entry.begin >= end:
                    break
                hasher.update(view[max(entry.begin - position, 0) : entry.end - position])
            position = end
            count(len(data))
    except (FileNotFoundError, ShortRead) as error:
        return [_describe(error)]
    if digest.hexdigest() == group.sha256:
        # Whoever reads single tensors trusts these digests alone.
        wrong = [entry.name for entry, hasher in hashers if hasher.hexdigest() != entry.blake3]
        return [f"the manifest has a wrong blake3 of tensor {name}" for name in wrong]
    wrong = [entry.name for entry, hasher in hashers if hasher.hexdigest() != entry.blake3]
    return [f"tensor {name} is damaged" for name in wrong] or ["its header is damaged"]


def _scan_references(registry_url: str, group: LayerGroup, count: Count) -> Iterator[str]:
    for entry in group.tensors:
        try:
            stream_tensors(registry_url, [(group, entry)], {entry.name: _Nowhere()}, progress=count)
        except DamagedTensor as error:
            yield f"tensor {entry.name}: {error.message.partition(': ')[2]}"


class _Nowhere:
    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """Return memory that is forgotten when the chunk has been hashed."""
        return memoryview(bytearray(nbytes))

    def filled(self, offset: int, nbytes: int) -> None:
        """Nothing is kept."""


def _describe(error: Exception) -> str:
    return "it is too short" if isinstance(error, ShortRead) else "it is gone"
