"""Is a store safe to keep anything shared on? Found out by trying, because many accept a condition and ignore it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from threading import Barrier, Event

from daskinfer.errors import DaskinferError, StorageError
from daskinfer.ids import make_nonce
from daskinfer.spec.registry.storecheck import StoreCheck, StoreReport
from daskinfer.storage.objects.conditional import mark_of, put_marked
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, list_names, open_filesystem, read_bytes
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url

WRITERS = 8
ROUNDS = 5
PART_BYTES = 5 * 2**20
"""The smallest part that S3 takes."""

_LARGE_BYTES = 2 * PART_BYTES + 1
_SAMPLES = 9
_ALTERNATIVES = (
    "Keep registries, jobs and outputs on a local or shared directory with hard links, on Amazon S3, on Google Cloud "
    "Storage, or on a server that honours If-None-Match and If-Match."
)


class _Unsafe(Exception):
    """What a store did wrong."""


def examine(url: str) -> StoreReport:
    """Try everything that daskinfer needs of a store, in a folder below `url` that is removed afterwards.

    Parameters
    ----------
    url
        A folder, or where one could be made.

    Raises
    ------
    StorageError
        Where nothing can be written there, or no safe way to do it is known.

    Examples
    --------
    >>> report = examine("work")
    >>> report.safe, [check.name for check in report.checks][:2]
    (True, ['exclusive create', 'conditional change'])
    """
    url = absolute_url(url)
    missing = _missing_folders(url)
    folder = join_url(url, f"daskinfer-doctor-{make_nonce()}")
    try:
        create(join_url(folder, "first"), b"first")
        checks = [_try(name, check, join_url(folder, name.replace(" ", "-"))) for name, check in _CHECKS.items()]
        timings = _measure(join_url(folder, "timings"))
    except BaseException:
        with suppress(DaskinferError, OSError):  # what went wrong first is what counts
            _clean_up(folder, missing)
        raise
    _clean_up(folder, missing)
    safe = all(check.passed for check in checks)
    return StoreReport(
        url=url, safe=safe, checks=tuple(checks), milliseconds=timings, hint=None if safe else _ALTERNATIVES
    )


def confirm_exclusive(url: str) -> None:
    """Make sure that an object that was just created cannot be created again with other bytes: two requests.

    Raises
    ------
    StorageError
        Where it was replaced; it is deleted.

    Examples
    --------
    >>> create("registry/marker", b"first")
    True
    >>> confirm_exclusive("registry/marker")
    """
    if create(url, make_nonce().encode()):
        delete(url)
        folder = url.rpartition("/")[0]
        raise StorageError(
            f"{folder} is not safe to use: its store lets a second writer replace what the first one created",
            hint=f"Look at: daskinfer doctor {folder}",
        )


def confirm_conditions(folder: str) -> None:
    """Make sure that a store heeds the conditions of writes, by objects that are removed again: about ten requests.

    Raises
    ------
    StorageError
        Where it ignores them.

    Examples
    --------
    >>> confirm_conditions("work")
    """
    if not _is_object_store(folder):
        return
    probe = join_url(folder, "_daskinfer", f"probe-{make_nonce()}")
    try:
        for number, check in enumerate((_check_existing, _check_change)):
            check(join_url(probe, str(number)))
    except _Unsafe as error:
        raise StorageError(
            f"{folder} is not safe to use: {error}", hint=f"Look at: daskinfer doctor {folder}"
        ) from None
    finally:
        with suppress(DaskinferError, OSError):  # what went wrong first is what counts
            delete(probe, recursive=True)


def _is_object_store(url: str) -> bool:
    """Whether changes are requests to a store, and neither renames of files nor steps of this process."""
    filesystem, _ = open_filesystem(url)
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else {*filesystem.protocol}
    return not is_local(url) and "memory" not in protocols


def _try(name: str, check: Callable[[str], str], url: str) -> StoreCheck:
    try:
        return StoreCheck(name=name, passed=True, detail=check(url))
    except _Unsafe as found:
        return StoreCheck(name=name, passed=False, detail=str(found))
    except (DaskinferError, FileNotFoundError) as error:
        return StoreCheck(name=name, passed=False, detail=f"it failed: {getattr(error, 'message', error)}")


def _check_existing(url: str) -> str:
    create(url, b"first")
    told = create(url, b"later")
    if told or read_bytes(url) != b"first":
        raise _Unsafe("a second writer replaced what the first one had created")
    return "an object that is there is not replaced"


def _check_change(url: str) -> str:
    if not _is_object_store(url):
        return "a change is a rename of a file, or a step of this process"
    create(url, b"first")
    filesystem, path = open_filesystem(url)
    if (mark := mark_of(filesystem, path)) is None:
        raise _Unsafe("an object that was just created is not there")
    # Where the answer to a change was lost and it is asked for again, the store has made it and says that it has not.
    if not put_marked(filesystem, path, b"second", mark) and read_bytes(url) != b"second":
        raise _Unsafe("an object was not replaced, though it was the one that was seen")
    if put_marked(filesystem, path, b"third", mark) or read_bytes(url) != b"second":
        raise _Unsafe("a writer replaced an object that was no longer the one it had seen")
    return "an object is replaced only while it is the one that was seen"


def _check_race(url: str) -> str:
    for turn in range(ROUNDS):
        place = join_url(url, str(turn))
        barrier = Barrier(WRITERS)
        payloads = [f"{number}".encode() * 1000 for number in range(WRITERS)]

        def write(number: int, place: str = place, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return create(place, f"{number}".encode() * 1000)

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(write, range(WRITERS)))
        if won.count(True) != 1:
            raise _Unsafe(f"{won.count(True)} of {WRITERS} writers of one object were told that they had won")
        if read_bytes(place) != payloads[won.index(True)]:
            raise _Unsafe("the writer that was told that it had won is not the one whose bytes are there")
    return f"one of {WRITERS} writers won, {ROUNDS} times"


def _check_lost_acknowledgement(url: str) -> str:
    # To the store, a writer that never heard the answer and one that does it twice are the same.
    create(url, b"mine")
    if not create(url, b"mine"):
        raise _Unsafe("a writer that asked again, its answer lost, was told that the object is another's")
    return "a writer whose answer was lost recognises its own object"


def _check_parts(url: str) -> str:
    create(url, b"first")
    if create(url, bytes(_LARGE_BYTES), PART_BYTES) or read_bytes(url) != b"first":
        raise _Unsafe("an object written in parts replaced one that was there")
    return "an object that is written in parts does not replace another"


def _check_halves(url: str) -> str:
    data = make_nonce().encode() * (_LARGE_BYTES // 16 + 1)
    done = Event()

    def watch() -> int:
        looks = 0
        while True:
            last = done.is_set()
            looks += 1
            with suppress(FileNotFoundError):
                if read_bytes(url, len(data) - 16, len(data)) != data[-16:]:
                    raise _Unsafe("a reader saw an object with bytes that were not written yet")
            if last:
                return looks

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            created = create(url, data, PART_BYTES)
        finally:
            done.set()
        try:
            looks = watching.result()
        except ShortRead as error:
            raise _Unsafe("a reader saw the beginning of an object that was still being written") from error
    if not created or read_bytes(url) != data:
        raise _Unsafe("a large object did not come back as it was written")
    return f"none was seen in {looks} looks while a large object was written"


def _check_listing(url: str) -> str:
    for number in range(5):
        create(join_url(url, f"object-{number}"), b"x")
        if len(list_names(url)) != number + 1:
            raise _Unsafe("an object that was just created is not listed")
    for number in range(5):
        delete(join_url(url, f"object-{number}"))
        if len(list_names(url)) != 4 - number:
            raise _Unsafe("an object that was just deleted is still listed")
    return "what is created or deleted shows at once"


def _check_ranges(url: str) -> str:
    create(url, b"0123456789")
    if read_bytes(url, 2, 5) != b"234":
        raise _Unsafe("a range came back with other bytes")
    for begin in (8, 20):
        with suppress(ShortRead):
            read_bytes(url, begin, begin + 5)
            raise _Unsafe("a range past the end came back with bytes that are not there")
    return "a range past the end is an error"


_CHECKS: dict[str, Callable[[str], str]] = {
    "exclusive create": _check_existing,
    "conditional change": _check_change,
    "one winner": _check_race,
    "lost answer": _check_lost_acknowledgement,
    "parts": _check_parts,
    "half objects": _check_halves,
    "listing": _check_listing,
    "ranges": _check_ranges,
}


def _measure(url: str) -> dict[str, float]:
    places = [join_url(url, f"object-{number}") for number in range(_SAMPLES)]
    actions: dict[str, Callable[[str], object]] = {
        "create": lambda place: create(place, bytes(1000)),
        "read": read_bytes,
        "list": lambda place: list_names(url),
    }
    timings = {}
    for name, act in actions.items():
        samples = []
        for place in places:
            begun = time.perf_counter()
            act(place)
            samples.append(time.perf_counter() - begun)
        timings[name] = round(median(samples) * 1000, 3)
    return timings


def _clean_up(folder: str, made: list[Path]) -> None:
    delete(folder, recursive=True)
    for path in made:
        with suppress(OSError):  # somebody else put something there
            path.rmdir()


def _missing_folders(url: str) -> list[Path]:
    """Return the local folders that writing below `url` would make, innermost first."""
    if not is_local(url):
        return []
    return [path for path in (Path(url), *Path(url).parents) if not path.exists()]
