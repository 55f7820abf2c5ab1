"""What a store must do before daskinfer may keep anything shared on it.

Subclass the contracts in a test module and override the fixture `store`::

    class TestMyStore(CreateContract, SlotLogContract):
        @pytest.fixture
        def store(self) -> str:
            return "s3://my-bucket/scratch/" + make_nonce()
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Barrier
from typing import TypeVar

import pytest

from daskinfer.errors import Conflict
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, exists, list_names, read_bytes, replace_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.urls import join_url

T = TypeVar("T")

WRITERS = 6


def race(action: Callable[[int], T], writers: int = WRITERS) -> list[T]:
    """Return what `action(number)` gives to each of several threads that start at one moment.

    Examples
    --------
    >>> sorted(race(lambda number: number * number, writers=3))
    [0, 1, 4]
    """
    barrier = Barrier(writers)

    def enter(number: int) -> T:
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(enter, range(writers)))


class StoreFixture:
    """Holds the fixture that every contract asks for.

    Examples
    --------
    >>> class OnDisk(StoreFixture):
    ...     @pytest.fixture
    ...     def store(self, tmp_path):
    ...         return str(tmp_path)
    """

    @pytest.fixture
    def store(self) -> str:
        """Return the URL of an empty folder on the store."""
        raise NotImplementedError("override the fixture `store`")


class FilesystemContract(StoreFixture):
    """Reading, listing, replacing and deleting.

    Examples
    --------
    >>> FilesystemContract().test_bytes_come_back_whole_and_by_range("memory://examples/bytes")
    """

    def test_bytes_come_back_whole_and_by_range(self, store: str) -> None:
        """Ranges are half open."""
        url = join_url(store, "a", "b.bin")
        replace_bytes(url, b"0123456789")
        replace_bytes(url, b"abcdefghij")
        assert read_bytes(url) == b"abcdefghij"
        assert read_bytes(url, 2, 5) == b"cde"
        assert read_bytes(url, 7) == b"hij"

    def test_a_range_past_the_end_is_an_error(self, store: str) -> None:
        """Stores hand out what they have; short bytes must not pass for whole ones."""
        url = join_url(store, "object")
        replace_bytes(url, b"0123")
        for begin in (2, 8):
            with pytest.raises(ShortRead):
                read_bytes(url, begin, begin + 10)

    def test_listing_names_children_only(self, store: str) -> None:
        """Files and folders, one level deep, and what was created since the last listing."""
        assert list_names(join_url(store, "nowhere")) == []
        for path in ("x/one", "x/two", "x/deep/er", "xy"):
            replace_bytes(join_url(store, path), b".")
        assert list_names(join_url(store, "x")) == ["deep", "one", "two"]
        assert list_names(join_url(store, "x", "one")) == []
        replace_bytes(join_url(store, "x", "three"), b".")
        assert list_names(join_url(store, "x")) == ["deep", "one", "three", "two"]

    def test_delete_is_idempotent(self, store: str) -> None:
        """A missing object is as good as a deleted one."""
        for path in ("d/one", "d/two/three"):
            replace_bytes(join_url(store, path), b".")
        for _ in range(2):
            delete(join_url(store, "d", "one"))
            assert not exists(join_url(store, "d", "one"))
        for _ in range(2):
            delete(join_url(store, "d"), recursive=True)
            assert list_names(join_url(store, "d")) == []

    def test_missing_objects_are_missing(self, store: str) -> None:
        """Reading one is FileNotFoundError, nothing else."""
        with pytest.raises(FileNotFoundError):
            read_bytes(join_url(store, "none"))
        with pytest.raises(FileNotFoundError):
            read_bytes(join_url(store, "none"), 0, 4)


class CreateContract(StoreFixture):
    """The create-if-absent primitive.

    Examples
    --------
    >>> CreateContract().test_the_first_one_wins_and_stays("memory://examples/create")
    """

    def test_the_first_one_wins_and_stays(self, store: str) -> None:
        """Later writers learn whether the object is theirs."""
        url = join_url(store, "new", "folder", "object")
        assert create(url, b"first")
        assert not create(url, b"later")
        assert create(url, b"first")
        assert read_bytes(url) == b"first"
        assert list_names(join_url(store, "new", "folder")) == ["object"]

    def test_one_of_many_wins(self, store: str) -> None:
        """Exactly one, and the object is that one's."""
        for turn in range(5):
            url = join_url(store, f"race-{turn}")
            payloads = [f"{number}".encode() * 100 for number in range(WRITERS)]
            won = race(lambda number, url=url, payloads=payloads: create(url, payloads[number]))  # type: ignore[misc]
            assert won.count(True) == 1
            assert read_bytes(url) == payloads[won.index(True)]

    def test_empty_objects_are_refused(self, store: str) -> None:
        """Some clients overwrite with them."""
        url = join_url(store, "empty")
        assert create(url, b"full")
        with pytest.raises(ValueError, match="empty"):
            create(url, b"")
        assert read_bytes(url) == b"full"


class SlotLogContract(StoreFixture):
    """The slot log.

    Examples
    --------
    >>> SlotLogContract().test_records_come_back_in_order("memory://examples/log")
    """

    def test_records_come_back_in_order(self, store: str) -> None:
        """Numbers run from 0 without gaps."""
        log = SlotLog(join_url(store, "log"))
        assert log.head() is None
        assert log.read() == []
        for number in range(3):
            assert log.append({"n": number}).sequence == number
        assert [(slot.sequence, slot.record) for slot in log.read()] == [(n, {"n": n}) for n in range(3)]
        assert log.head() == log.read()[-1]

    def test_an_expected_number_is_had_or_refused(self, store: str) -> None:
        """Neither a taken number nor one that would leave a gap."""
        log = SlotLog(join_url(store, "log"))
        log.append({"n": 0}, expect=0)
        for wrong in (0, 2):
            with pytest.raises(Conflict):
                log.append({"n": 1}, expect=wrong)
        assert log.append({"n": 1}, expect=1).sequence == 1

    def test_equal_records_of_two_writers_are_two_records(self, store: str) -> None:
        """The nonce tells a lost race from a lost acknowledgement."""
        log = SlotLog(join_url(store, "log"))
        outcomes = race(lambda number: _try_append(log, {"same": True}, 0))
        assert outcomes.count(True) == 1
        assert len(log.read()) == 1

    def test_nothing_is_lost_or_doubled(self, store: str) -> None:
        """Writers that append at once get numbers of their own."""
        log = SlotLog(join_url(store, "log"))
        marks = [[make_nonce() for _ in range(3)] for _ in range(WRITERS)]
        race(lambda number: [log.append({"mark": mark}) for mark in marks[number]])
        slots = log.read()
        assert [slot.sequence for slot in slots] == list(range(WRITERS * 3))
        assert sorted(slot.record["mark"] for slot in slots) == sorted(chain.from_iterable(marks))


def _try_append(log: SlotLog, record: dict[str, bool], expect: int) -> bool:
    try:
        log.append(record, expect=expect)
    except Conflict:
        return False
    return True
