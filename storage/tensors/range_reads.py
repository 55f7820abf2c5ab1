"""Reading tensors of a snapshot: exactly the wanted bytes, straight to where they go, verified on the way.

Bytes are read in chunks by several threads; a tensor's chunks are hashed in order, each by the thread that read it, so
that even one huge tensor is read and hashed side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3

from daskinfer.errors import CorruptBlob
from daskinfer.knobs import LOCAL_CHUNK, REMOTE_CHUNK
from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.storage.objects.filesystem import open_reader
from daskinfer.storage.objects.store_errors import ShortRead, explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url

_LOCAL_THREADS = 4
_CONNECTIONS = 8
# On remote stores a request costs more than bytes: small gaps are read along, up to a share of the wanted bytes.
_LARGEST_GAP = 2**20
_GAPS_SHARE = 0.015
DAMAGED = "The registry was damaged: restore that file from a copy, or publish the checkpoint again as a new version."
"""What to do about a registry whose bytes are not those that were published."""
_CHANGED = "The checkpoint was published by reference and that file has changed: publish it again."

Wanted = tuple[LayerGroup, TensorEntry]
"""A tensor and the group that it belongs to."""


class Target(Protocol):
    """Memory that one tensor's bytes go to, used from several threads."""

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """Return writable memory for the tensor's bytes from `offset` on; chunks ahead may be asked for at once."""
        ...

    def filled(self, offset: int, nbytes: int) -> None:
        """Take over what was read into that memory; called in order, one chunk at a time."""
        ...


class DamagedTensor(CorruptBlob):
    """A tensor whose bytes are missing or not those that were published."""

    entry: TensorEntry
    """The tensor."""


def _damaged(entry: TensorEntry, message: str, hint: str) -> DamagedTensor:
    # An attribute and not an argument: errors travel between processes by what their class takes.
    error = DamagedTensor(message, hint)
    error.entry = entry
    return error


def locate(registry_url: str, wanted: Wanted) -> str:
    """Return the URL of the file that holds a tensor's bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.testing.fixtures.groups import as_reference, store_group
    >>> group = store_group(".", "layer.0", {"weight": np.ones((2, 2), np.float32)})
    >>> locate("s3://bucket/registry", (group, group.tensors[0])) == f"s3://bucket/registry/{group.blob}"
    True
    >>> group = as_reference("s3://bucket/checkpoint", group)
    >>> locate("s3://bucket/registry", (group, group.tensors[0])) == group.tensors[0].file
    True
    """
    group, entry = wanted
    if entry.file is not None:
        return entry.file
    if group.blob is None:
        problem = f"tensor {entry.name} of layer group {group.name} has neither blob nor file"
        raise _damaged(entry, problem, DAMAGED)
    return join_url(registry_url, group.blob)


def stream_tensors(
    registry_url: str,
    wanted: Iterable[Wanted],
    targets: Mapping[str, Target],
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Read tensors into their targets and verify each one's digest.

    Parameters
    ----------
    registry_url
        Where the snapshot's blobs are.
    wanted
        What to read; any part of a group.
    targets
        Where each tensor goes, by tensor name.
    progress
        Told of every number of bytes that has arrived; never by two threads at once. They add up to the wanted bytes.

    Returns
    -------
    int
        Bytes read: the wanted ones, and on remote stores at most 1.5 % more for gaps between them.

    Raises
    ------
    CorruptBlob
        Where a file is missing, too short, or holds other bytes than were published.
    StorageError
        Where the store refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.testing.fixtures.groups import Memory, store_group
    >>> group = store_group(".", "layer.0", {"bias": np.zeros(2), "weight": np.float32([1, 2])})
    >>> weight = next(entry for entry in group.tensors if entry.name == "weight")
    >>> memory = Memory(8)
    >>> stream_tensors(".", [(group, weight)], {"weight": memory})
    8
    >>> np.frombuffer(memory.data, np.float32)
    array([1., 2.], dtype=float32)
    """
    named = {pair[1].name: pair for pair in wanted}
    tensors = [_Tensor(*pair, locate(registry_url, pair), targets[name]) for name, pair in named.items()]
    chunks = _cut_chunks(tensors)
    readers = {chunk.url: _make_reader(chunk.url) for chunk in chunks}
    lock = threading.Lock()

    def run(chunk: _Chunk, before: Future[None] | None) -> None:
        buffers = [piece.tensor.target.buffer(piece.offset, piece.nbytes) for piece in chunk.pieces]
        try:
            readers[chunk.url](chunk, buffers)
        except FileNotFoundError as error:
            raise chunk.pieces[0].tensor.explain("its file is gone") from error
        except ShortRead as error:
            raise chunk.pieces[0].tensor.explain(f"its file is too short: {error.message}") from error
        if before is not None:
            before.result()
        for piece, buffer in zip(chunk.pieces, buffers, strict=True):
            piece.tensor.hash(piece, buffer)
            piece.tensor.target.filled(piece.offset, piece.nbytes)
        if progress is not None:
            with lock:
                progress(sum(piece.nbytes for piece in chunk.pieces))

    threads = _LOCAL_THREADS if all(is_local(url) for url in readers) else _CONNECTIONS
    with ThreadPoolExecutor(threads, thread_name_prefix="tensors") as pool:
        futures: list[Future[None]] = []
        for chunk in chunks:
            # Work is taken up in order, so the chunk that this one waits for is always under way.
            before = futures[-1] if chunk.pieces[0].offset else None
            futures.append(pool.submit(run, chunk, before))
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sum(chunk.end - chunk.begin for chunk in chunks)


@dataclass(slots=True)
class _Tensor:
    """A tensor on its way."""

    group: LayerGroup
    entry: TensorEntry
    url: str
    target: Target
    hasher: Any = field(default_factory=blake3)

    def hash(self, piece: _Piece, data: memoryview) -> None:
        self.hasher.update(data)
        if piece.end < self.entry.end:
            return
        digest = self.hasher.hexdigest()
        if digest != self.entry.blake3:
            raise self.explain(f"it is damaged:\n  blake3 {digest}\n  manifest says {self.entry.blake3}")

    def explain(self, problem: str) -> DamagedTensor:
        hint = DAMAGED if self.entry.file is None else _CHANGED
        message = f"tensor {self.entry.name} of layer group {self.group.name} in {self.url}: {problem}"
        return _damaged(self.entry, message, hint)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a tensor that are read at once; `begin` and `end` count from the start of the file."""

    tensor: _Tensor
    begin: int
    end: int

    @property
    def offset(self) -> int:
        return self.begin - self.tensor.entry.begin

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(slots=True)
class _Chunk:
    """A range of a file that is read at once. Only its first piece may go on with a tensor of the chunk before."""

    url: str
    pieces: list[_Piece]

    @property
    def begin(self) -> int:
        return self.pieces[0].begin

    @property
    def end(self) -> int:
        return max(piece.end for piece in self.pieces)


def _cut_chunks(tensors: Sequence[_Tensor]) -> list[_Chunk]:
    ordered = sorted(tensors, key=lambda tensor: (tensor.url, tensor.entry.begin, tensor.entry.end))
    bridged = _choose_gaps(ordered)
    chunks: list[_Chunk] = []
    for tensor in ordered:
        local = is_local(tensor.url)
        size = (LOCAL_CHUNK if local else REMOTE_CHUNK).get()
        for begin in range(tensor.entry.begin, tensor.entry.end, size):
            piece = _Piece(tensor, begin, min(begin + size, tensor.entry.end))
            last = chunks[-1] if chunks else None
            if (
                last is not None
                and last.url == tensor.url
                and piece.end - last.begin <= size
                and (begin == last.end or begin in bridged.get(tensor.url, ()))
            ):
                last.pieces.append(piece)
            else:
                chunks.append(_Chunk(tensor.url, [piece]))
    return chunks


def _choose_gaps(ordered: Sequence[_Tensor]) -> dict[str, set[int]]:
    """Return where the gaps end that are read along, by URL: the smallest, as long as they are few bytes in all."""
    gaps = []
    for first, second in pairwise(ordered):
        gap = second.entry.begin - first.entry.end
        if first.url == second.url and 0 < gap <= _LARGEST_GAP and not is_local(first.url):
            gaps.append((gap, second.url, second.entry.begin))
    left = _GAPS_SHARE * sum(tensor.entry.end - tensor.entry.begin for tensor in ordered)
    bridged: dict[str, set[int]] = {}
    for gap, url, end in sorted(gaps):
        left -= gap
        if left < 0:
            break
        bridged.setdefault(url, set()).add(end)
    return bridged


def _make_reader(url: str) -> Callable[[_Chunk, list[memoryview]], None]:
    if is_local(url):
        return _read_local
    read = open_reader(url)

    def read_remote(chunk: _Chunk, buffers: list[memoryview]) -> None:
        data = memoryview(read(chunk.begin, chunk.end))
        for piece, buffer in zip(chunk.pieces, buffers, strict=True):
            buffer[:] = data[piece.begin - chunk.begin : piece.end - chunk.begin]

    return read_remote


def _read_local(chunk: _Chunk, buffers: list[memoryview]) -> None:
    with explain_errors(chunk.url, "read"), Path(absolute_url(chunk.url)).open("rb", buffering=0) as file:
        file.seek(chunk.begin)
        for piece, buffer in zip(chunk.pieces, buffers, strict=True):
            done = 0
            while done < piece.nbytes:
                count = file.readinto(buffer[done:])
                if not count:
                    raise ShortRead(f"it ends before byte {piece.end}")
                done += count
