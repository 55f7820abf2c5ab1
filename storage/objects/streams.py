"""Objects that are too large for memory: read as pieces in order, hashed on the way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from daskinfer.errors import CorruptBlob
from daskinfer.storage.objects.filesystem import open_reader
from daskinfer.storage.objects.store_errors import ShortRead, explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local

PIECE = 8 * 2**20
"""Bytes of a piece: large enough to make a request's latency small."""

_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes that are known by length and digest before they are read."""

    size: int
    """Length in bytes."""
    sha256: str
    """64 hex digits."""
    pieces: Callable[[], Iterator[bytes]]
    """Returns the bytes in order, from the start at every call."""

    def verified(self) -> Iterator[bytes]:
        """Return the pieces; after the last one, raise `CorruptBlob` where they were not the right ones."""
        digest, count = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            count += len(piece)
            yield piece
        if (count, digest.hexdigest()) != (self.size, self.sha256):
            raise CorruptBlob(
                f"{count} bytes with sha256 {digest.hexdigest()} came, {self.size} with {self.sha256} were expected"
            )


def read_pieces(url: str, begin: int, end: int, size: int = PIECE) -> Iterator[bytes]:
    """Yield a range of an object in order; on remote stores the next few pieces are under way meanwhile.

    Raises
    ------
    FileNotFoundError
        Where there is no such object.
    ShortRead
        Where it ends before the range does.
    StorageError
        Where the store refuses.

    Examples
    --------
    >>> _ = Path("blob").write_bytes(b"0123456789")
    >>> list(read_pieces("blob", 2, 9, size=3))
    [b'234', b'567', b'8']
    """
    if is_local(url):
        yield from _read_local(url, begin, end, size)
        return
    read = open_reader(url)
    bounds = pairwise([*range(begin, end, size), end])
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="pieces") as pool:
        try:
            for piece in bounds:
                waiting.append(pool.submit(read, *piece))
                if len(waiting) == _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_local(url: str, begin: int, end: int, size: int) -> Iterator[bytes]:
    with explain_errors(url, "read"), Path(absolute_url(url)).open("rb") as file:
        file.seek(begin)
        while begin < end:
            data = file.read(min(size, end - begin))
            if not data:
                raise ShortRead(f"{url} ends at byte {begin}, {end} were expected")
            begin += len(data)
            yield data
