"""What a job changes in an output, so that no process that wakes up too late changes another job's.

A process may sleep for an hour between any two steps: stopped, swapped out, cut off from its store. When it wakes, its
output may be another job's, sealed and read. To look at the owner and then to write is therefore not enough: what
changes the output must itself fail once the output has another owner.

On a local path every change is one rename(2) or link(2) from or to a folder of its own,
`_daskinfer/work/<job>/<turn>-<nonce>/`, which is made first; then the owner is looked up; then the change is made.
Whoever takes an output over writes itself down as its owner, then deletes the folders of all others, and only then
touches the output. So either the look finds the new owner; or the folder was there before it, and is gone when the
sleeper wakes: there is nothing to link or to rename, and no place to move anything away to. The same holds between
two drivers of one job, which are told apart by their turn.

On object stores a change is conditional on the object that was seen before the owner was looked up. In memory, look and
change are one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from daskinfer.errors import Conflict, OutputOwned, StorageError
from daskinfer.ids import make_nonce
from daskinfer.knobs import STORE_ATTEMPTS
from daskinfer.storage.objects import create_if_absent
from daskinfer.storage.objects.backoff import persist
from daskinfer.storage.objects.conditional import delete_marked, mark_in, mark_of, put_marked
from daskinfer.storage.objects.filesystem import list_names, open_filesystem, read_bytes
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local
from daskinfer.storage.outputs.owner import OwnerWatch
from daskinfer.storage.outputs.places import RECORDS, WORK

_DELETES = 16


def create(url: str, data: bytes, fence: Fence) -> bool:
    """Create an object of an output unless one is there, by a name that whoever delays writes can put another in place of.

    See `Fence.create`.

    Examples
    --------
    >>> fence = Fence("labels.jsonl", "demo")
    >>> create("labels.jsonl/part", b"mine", fence), create("labels.jsonl/part", b"others'", fence)
    (True, False)
    """
    return fence.create(url, data)


class Fence:
    """What one job may change in an output, while that is its own.

    Parameters
    ----------
    url
        The output, whose log of owners counts.
    job
        The job.
    turn
        Life of its driver: what an earlier one has begun, a later one stops.
    check
        Raises where that life is over; asked before anything is replaced or removed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl", job="demo").output
    >>> Fence(output, "demo").confirm()
    >>> Fence(output, "other").remove(f"{output}/_MANIFEST.json")
    Traceback (most recent call last):
        ...
    daskinfer.errors.OutputOwned: .../labels.jsonl was taken over by job demo; job other stops
    Choose another output.url, or start over: daskinfer run RECIPE --fresh.
    """

    def __init__(self, url: str, job: str, turn: int = 0, check: Callable[[], object] | None = None) -> None:
        self.url = absolute_url(url)
        self.job = job
        self.turn = turn
        self._check = check
        self._owner = OwnerWatch(self.url)

    def confirm(self) -> None:
        """Make sure that the output is still the job's.

        Raises
        ------
        OutputOwned
            Another job has taken it over.
        """
        self._owner.confirm(self.job)

    def create(self, url: str, data: bytes) -> bool:
        """Create an object unless one is there; nobody ever sees half of it.

        Returns
        -------
        bool
            True if the object at `url` now has these bytes, False if it has others.

        Raises
        ------
        OutputOwned
            The output is another job's.
        """
        if is_local(url):
            with explain_errors(url, "create"):
                return self._link(Path(absolute_url(url)), data)
        if _is_memory(url):
            with create_if_absent.MEMORY_LOCK:
                self.confirm()
                return create_if_absent.create_in_memory(*open_filesystem(url), data)
        self.confirm()
        created = create_if_absent.create(url, data)
        try:
            self.confirm()
        except OutputOwned:
            if created:
                self._take_back(url, data)
            raise
        return created

    def replace(self, url: str, data: bytes) -> None:
        """Give an object other bytes, whatever is there; readers see the old ones or the new ones.

        Raises
        ------
        OutputOwned
            The output is another job's.
        """
        with explain_errors(url, "write"):
            if is_local(url):
                self._rename(Path(absolute_url(url)), data)
                return
            filesystem, path = open_filesystem(url)
            if _is_memory(url):
                with create_if_absent.MEMORY_LOCK:
                    self._confirm_turn()
                    filesystem.pipe_file(path, data)
                return
            persist(url, lambda: self._replace_marked(filesystem, url, path, data))

    def remove(self, url: str, recursive: bool = False) -> None:
        """Delete an object, or a whole folder; a missing one is fine.

        Raises
        ------
        OutputOwned
            The output is another job's.
        """
        with explain_errors(url, "delete"):
            if is_local(url):
                self._move_away(Path(absolute_url(url)))
                return
            filesystem, path = open_filesystem(url)
            if _is_memory(url):
                with create_if_absent.MEMORY_LOCK, suppress(FileNotFoundError):
                    self._confirm_turn()
                    filesystem.rm(path, recursive=recursive)
                return
            self._delete_marked(filesystem, path, recursive)

    def sweep(self, whole: bool = False) -> None:
        """Stop all changes that others have begun, and delete what killed writers left; for drivers.

        Parameters
        ----------
        whole
            Also those of this driver's own attempts, which begin again: for when nothing more is to be written.
        """
        if not is_local(self.url):
            return
        self._confirm_turn()
        home = Path(self.url, RECORDS, WORK)
        for job in list_names(str(home)):
            if job != self.job:
                _destroy(home / job)
        for name in list_names(str(home / self.job)):
            turn = name.partition("-")[0]
            if whole or (turn.isdecimal() and int(turn) < self.turn):
                _destroy(home / self.job / name)
        self.leave()

    def leave(self) -> None:
        """Delete the folders that changes begin in, where nobody makes one."""
        if is_local(self.url):
            home = Path(self.url, RECORDS, WORK)
            for folder in (home / self.job, home):
                with suppress(OSError):
                    folder.rmdir()

    def _confirm_turn(self) -> None:
        self.confirm()
        if self._check is not None:
            self._check()

    def _link(self, target: Path, data: bytes) -> bool:
        if not data:
            raise ValueError(f"refusing to create the empty object {target}")
        for _ in range(STORE_ATTEMPTS.get()):
            with suppress(FileNotFoundError):  # the place was swept, or the target's folder deleted
                if target.exists():
                    return create_if_absent.holds(target, data)
                with self._place(target) as place:
                    temporary = _write(place, [data])
                    self.confirm()
                    _make_folder(target.parent, place)
                    return create_if_absent.link(temporary, target, lambda path: create_if_absent.holds(path, data))
            self.confirm()
        raise _keeps_going(target)

    def _rename(self, target: Path, data: bytes) -> None:
        for _ in range(STORE_ATTEMPTS.get()):
            with suppress(FileNotFoundError), self._place(target) as place:
                temporary = _write(place, [data])
                self._confirm_turn()
                _make_folder(target.parent, place)
                os.replace(temporary, target)  # noqa: PTH105 - by its plain name, for whoever makes it fail
                create_if_absent.sync_folder(target.parent)
                return
            self._confirm_turn()
            with suppress(FileNotFoundError):  # a network filesystem may lose the answer and do it again
                if create_if_absent.holds(target, data):
                    return
        raise _keeps_going(target)

    def _move_away(self, target: Path) -> None:
        for _ in range(STORE_ATTEMPTS.get()):
            if not os.path.lexists(target):
                return
            with suppress(FileNotFoundError), self._place(target) as place:
                self._confirm_turn()
                target.rename(place / "removed")
                return
            self._confirm_turn()
        raise _keeps_going(target)

    def _replace_marked(self, filesystem: AbstractFileSystem, url: str, path: str, data: bytes) -> None:
        for _ in range(STORE_ATTEMPTS.get()):
            mark = mark_of(filesystem, path)
            self._confirm_turn()
            if mark is None:
                if create_if_absent.create(url, data):
                    return
            elif put_marked(filesystem, path, data, mark):
                return
            with suppress(FileNotFoundError):
                if read_bytes(url) == data:
                    return
        raise _keeps_going(url)

    def _delete_marked(self, filesystem: AbstractFileSystem, path: str, recursive: bool) -> None:
        if recursive:
            found = filesystem.find(path, detail=True)
            marks = {name: mark_in(filesystem, entry) for name, entry in found.items()}
        else:
            mark = mark_of(filesystem, path)
            marks = {} if mark is None else {path: mark}

        def delete(name: str) -> None:
            self._confirm_turn()
            persist(name, lambda: delete_marked(filesystem, name, marks[name]))

        with ThreadPoolExecutor(_DELETES, thread_name_prefix="remove") as pool:
            for _ in pool.map(delete, marks):
                pass

    def _take_back(self, url: str, data: bytes) -> None:
        """Delete what came too late, if nobody has put anything in its place."""
        filesystem, path = open_filesystem(url)
        with suppress(FileNotFoundError, StorageError, OSError):
            mark = mark_of(filesystem, path)
            if mark is not None and read_bytes(url) == data:
                delete_marked(filesystem, path, mark)

    @contextmanager
    def _place(self, target: Path) -> Iterator[Path]:
        """Make a folder that nobody else ever makes again; delete it afterwards."""
        home = Path(self.url, RECORDS, WORK, self.job)
        place = home / f"{self.turn:04d}-{make_nonce()}"
        for _ in range(STORE_ATTEMPTS.get()):
            try:
                home.mkdir(parents=True, exist_ok=True)
                place.mkdir()
                break
            except FileNotFoundError:  # it was swept in between
                continue
            except FileExistsError as error:
                raise StorageError(
                    f"cannot write {target}: {error.filename} is a file, not a folder", hint="Choose another place."
                ) from error
        try:
            yield place
        except BaseException:
            _destroy(place)
            for folder in (home, home.parent, home.parent.parent):
                with suppress(OSError):
                    folder.rmdir()
            raise
        _destroy(place)


def _write(place: Path, pieces: Iterable[bytes]) -> Path:
    temporary = place / "new"
    with temporary.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _make_folder(folder: Path, place: Path) -> None:
    """Make a folder and those above it by renaming them into their place, all at once."""
    for turn in count():
        if folder.is_dir():
            return
        top = folder
        while not os.path.lexists(top.parent):
            top = top.parent
        built = place / f"folder-{turn}"
        (built / folder.relative_to(top)).mkdir(parents=True, exist_ok=True)
        try:
            built.rename(top)
        except OSError:
            # Another attempt was there first. FileNotFoundError, where the place was swept, goes through.
            if not place.is_dir() or not os.path.lexists(top):
                raise
            if not top.is_dir():
                raise StorageError(
                    f"cannot write {folder}: {top} is a file, not a folder", hint="Choose another place."
                ) from None
        create_if_absent.sync_folder(top.parent)


def _destroy(folder: Path) -> None:
    """Delete a folder, though its writer may still be at work in it."""
    for _ in range(STORE_ATTEMPTS.get()):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
    shutil.rmtree(folder)


def _is_memory(url: str) -> bool:
    filesystem: Any = open_filesystem(url)[0]
    return "memory" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _keeps_going(target: Path | str) -> Conflict:
    return Conflict(f"{target} keeps being created and deleted", hint="Find out who else writes there.")
