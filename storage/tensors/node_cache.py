"""Tensors of remote snapshots kept on this machine, so that its processes fetch each of them once.

One file a tensor, named by its digest, made whole or not at all. Nothing in it is trusted: every load verifies again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.spec.snapshot import TensorEntry
from daskinfer.storage.objects.urls import is_local
from daskinfer.storage.tensors.range_reads import DamagedTensor, Target, Wanted, locate, stream_tensors

FOLDER_VARIABLE = "DASKINFER_CACHE"
LIMIT_VARIABLE = "DASKINFER_CACHE_BYTES"
_LARGEST = 50 * 10**9
_DISK_SHARE = 0.2
_ATTEMPTS = 4
# Groups that are fetched side by side, each over its own connections.
_FETCHES = 2


def load_tensors(
    registry_url: str,
    wanted: Iterable[Wanted],
    targets: Mapping[str, Target],
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Do what `stream_tensors` does; remote tensors come through this machine's cache.

    Without room or right to write there, the cache is done without.

    Returns
    -------
    int
        Bytes read from the registry; what came out of the cache does not count.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.testing.fixtures.groups import Memory, store_group
    >>> group = store_group(".", "layer.0", {"bias": np.zeros(2), "weight": np.float32([1, 2])})
    >>> targets = {entry.name: Memory(entry.end - entry.begin) for entry in group.tensors}
    >>> load_tensors(".", [(group, entry) for entry in group.tensors], targets)
    24
    >>> np.frombuffer(targets["weight"].data, np.float32)
    array([1., 2.], dtype=float32)
    """
    local: list[Wanted] = []
    remote: list[Wanted] = []
    for pair in wanted:
        url = locate(registry_url, pair)
        # A memory:// store lives in this process: nothing is nearer.
        (local if is_local(url) or url.startswith("memory://") else remote).append(pair)
    meter = _Meter(progress)
    fetched = 0
    cache = open_cache()
    if remote and cache is not None:
        try:
            for _ in range(_ATTEMPTS):
                meter.restart()
                fetched += cache.fetch(registry_url, remote, meter.add)
                meter.restart()
                try:
                    pairs = [*local, *((group, cache.stored(entry)) for group, entry in remote)]
                    stream_tensors(registry_url, pairs, targets, progress=meter.add)
                except DamagedTensor as damage:
                    if not cache.discard(damage.entry):
                        raise
                else:
                    return fetched + sum(entry.end - entry.begin for _, entry in local)
        except OSError:  # of the cache's own files: stores raise StorageError
            pass
    meter.restart()
    return fetched + stream_tensors(registry_url, [*local, *remote], targets, progress=meter.add)


def open_cache() -> NodeCache | None:
    """Return this machine's cache as the environment describes it; None where it is off.

    Raises
    ------
    StorageError
        Where DASKINFER_CACHE_BYTES is not a number.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {LIMIT_VARIABLE: "0"}):
    ...     open_cache() is None
    True
    >>> with patch.dict(os.environ, {LIMIT_VARIABLE: "50 GB"}):
    ...     open_cache()
    Traceback (most recent call last):
        ...
    daskinfer.errors.StorageError: DASKINFER_CACHE_BYTES='50 GB' is not a number of bytes
    Give one, or 0 for no cache, or unset it.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    if limit is not None and not limit.isdecimal():
        raise StorageError(
            f"{LIMIT_VARIABLE}={limit!r} is not a number of bytes", hint="Give one, or 0 for no cache, or unset it."
        )
    if limit is not None and int(limit) == 0:
        return None
    try:
        return NodeCache(cache_folder(), None if limit is None else int(limit))
    except RuntimeError:  # containers run under ids without a home
        return None


def cache_folder() -> Path:
    """Return where this machine keeps what can be had again; `RuntimeError` where there is no home folder.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {FOLDER_VARIABLE: "/scratch/daskinfer"}):
    ...     print(cache_folder())
    /scratch/daskinfer
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/daskinfer").expanduser().absolute()


def private_folder(name: str) -> Path | None:
    """Return a folder of the cache, made if need be, that only this user can write in; None where there is none.

    What is kept there is used without another proof.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {FOLDER_VARIABLE: "cache"}):
    ...     oct(private_folder("proofs").stat().st_mode & 0o777)
    '0o700'
    """
    with suppress(RuntimeError, OSError):  # there may be no home folder, or no right to write
        folder = cache_folder() / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (folder, folder.parent):
            found = place.stat()
            # Folders that a group may write in are common: the group is often the user's own.
            if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
                return None
        return folder
    return None


class NodeCache:
    """A folder of tensors, shared by the processes of a machine.

    Parameters
    ----------
    folder
        Where it is.
    limit
        Bytes that it may hold; by default 50 GB, or a fifth of the disk's free space where that is less.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.testing.fixtures.groups import store_group
    >>> group = store_group(".", "layer.0", {"weight": np.ones((2, 2), np.float32)})
    >>> cache, wanted = NodeCache(Path("cache")), [(group, entry) for entry in group.tensors]
    >>> cache.fetch(".", wanted, lambda nbytes: None), cache.fetch(".", wanted, lambda nbytes: None)
    (16, 0)
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._tensors = folder / "tensors"
        self._locks = folder / "locks"
        self._limit = limit

    def stored(self, entry: TensorEntry) -> TensorEntry:
        """Return the entry as it is in the cache."""
        return entry.model_copy(update={"file": str(self._path(entry)), "begin": 0, "end": _size(entry)})

    def discard(self, entry: TensorEntry) -> bool:
        """Remove a tensor; say whether the entry was one of the cache's own."""
        path = self._path(entry)
        if entry.file != str(path):
            return False
        path.unlink(missing_ok=True)
        return True

    def fetch(self, registry_url: str, wanted: Sequence[Wanted], progress: Callable[[int], None]) -> int:
        """Bring in what is missing and return how many bytes that took.

        A group that another process is bringing in is waited for. What would not fit is not brought in at all.

        Raises
        ------
        OSError
            Where the folder cannot be written, or is too small.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        self._tensors.mkdir(exist_ok=True)
        self._make_room([entry for _, entry in wanted])
        groups: dict[str, list[Wanted]] = {}
        for group, entry in wanted:
            groups.setdefault(group.sha256, []).append((group, entry))

        def fetch_group(name: str) -> int:
            with self._locked(name):
                missing = {entry.blake3: (group, entry) for group, entry in groups[name] if not self._touch(entry)}
                files = {entry.name: _FileTarget(self._path(entry), _size(entry)) for _, entry in missing.values()}
                try:
                    return stream_tensors(registry_url, missing.values(), files, progress=progress)
                finally:
                    for file in files.values():
                        file.temporary.unlink(missing_ok=True)

        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch") as pool:
            return sum(pool.map(fetch_group, groups))

    def _make_room(self, wanted: Sequence[TensorEntry]) -> None:
        """Remove what was used longest ago, until the missing tensors fit."""
        with self._locked("room"):
            used = {}
            for path in self._tensors.iterdir():
                with suppress(FileNotFoundError):  # just finished under its own name by another process
                    status = path.stat()
                    used[path] = (status.st_mtime_ns, status.st_size)
            keep = {self._path(entry): _size(entry) for entry in wanted}
            total = sum(size for _, size in used.values())
            limit = self._limit
            if limit is None:
                limit = min(_LARGEST, int(_DISK_SHARE * (shutil.disk_usage(self._tensors).free + total)))
            total += sum(size for path, size in keep.items() if path not in used)
            if sum(keep.values()) > limit:
                raise OSError(f"the cache holds {limit} bytes, these tensors are {sum(keep.values())}")
            for path in sorted(used.keys() - keep.keys(), key=used.__getitem__):
                if total <= limit:
                    break
                path.unlink(missing_ok=True)
                total -= used[path][1]

    def _touch(self, entry: TensorEntry) -> bool:
        """Mark a tensor as used now; say whether it is there."""
        try:
            os.utime(self._path(entry))
        except FileNotFoundError:
            return entry.begin == entry.end
        return True

    def _path(self, entry: TensorEntry) -> Path:
        return self._tensors / entry.blake3

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._locks / name).open("ab") as file:
            # Let go of by the system when the process ends, however it does.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(slots=True)
class _FileTarget:
    """A file that appears when it is whole and verified."""

    path: Path
    size: int
    buffers: dict[int, bytearray] = field(default_factory=dict)
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = self.path.with_name(f".{self.path.name}.{make_nonce()}.tmp")

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        self.buffers[offset] = bytearray(nbytes)
        return memoryview(self.buffers[offset])

    def filled(self, offset: int, nbytes: int) -> None:
        with self.temporary.open("ab") as file:
            file.write(self.buffers.pop(offset))
        if offset + nbytes == self.size:
            self.temporary.replace(self.path)


class _Meter:
    """Passes progress on; what is done again after a restart is not told again."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._done = 0
        self._told = 0
        self._lock = threading.Lock()

    def restart(self) -> None:
        self._done = 0

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._progress is not None and self._done > self._told:
                self._progress(self._done - self._told)
                self._told = self._done


def _size(entry: TensorEntry) -> int:
    return entry.end - entry.begin
