"""Indices of commit records: never wrong, never trusted alone, and worth having."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.errors import IntegrityError, StorageError
from daskinfer.ids import canonical_json, make_nonce
from daskinfer.spec.commit import CommitRecord
from daskinfer.spec.generation import Generations, Pin
from daskinfer.storage.filesystem import delete, list_names, read_bytes, replace_bytes
from daskinfer.storage.outputs import commits, standing
from daskinfer.storage.outputs.commits import CommitDigest, CommitIndex
from daskinfer.storage.outputs.ledger import Ledger
from daskinfer.storage.outputs.sink import OutputLayout
from daskinfer.storage.outputs.standing import Standing
from daskinfer.storage.urls import join_url
from daskinfer.testing.campaigns import campaign_size

JOB = "job-1"
COUNT = 40
LAYOUT = OutputLayout(JOB, (), {}, 10, 10 * COUNT, {})


def make_record(partition: int, refused: int = 0, job: str = JOB, generation: int = 0) -> CommitRecord:
    return CommitRecord(
        job=job,
        snapshot=f"sha256:{generation:064x}",
        partition=partition,
        generation=generation,
        epoch=1,
        rows_in=10,
        rows_out=10 - refused,
        rows_quarantined=refused,
        tokens=100,
        padded_tokens=120,
        microbatches=((10, 12),),
        digest=f"{partition:032x}",
        path=f"part-{partition:08d}.parquet",
        trail=(),
    )


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "INDEX_RECORDS", 4)
    monkeypatch.setattr(standing, "INDEX_RECORDS", 4)


@pytest.fixture
def url() -> Iterator[str]:
    place = f"memory://commits-{make_nonce()}"
    yield place
    delete(place, recursive=True)


def fill(url: str, numbers: range, layout: OutputLayout = LAYOUT) -> Ledger:
    ledger = Ledger(url, layout)
    for number in numbers:
        ledger.commit(make_record(number, number % 3, layout.job))
    return ledger


def folder_of(url: str, job: str = JOB) -> str:
    return join_url(url, "_daskinfer/commits", job)


def indices(url: str) -> list[str]:
    return [name for name in list_names(folder_of(url)) if name.startswith("index-")]


def damage(url: str, numbers: range) -> None:
    """Make records unreadable, so that reading one is an error."""
    for number in numbers:
        replace_bytes(join_url(folder_of(url), f"{number:08d}.json"), b"{")


def test_what_is_indexed_is_not_read_again(url: str) -> None:
    ledger = fill(url, range(10))
    expected = [CommitDigest.of(record) for record in ledger.committed()]
    assert list(ledger.digests()) == expected
    assert indices(url) == []  # only drivers write one
    assert list(ledger.digests(keep=True)) == expected
    assert len(indices(url)) == 1
    damage(url, range(10))
    assert list(ledger.digests(keep=True)) == expected
    assert len(indices(url)) == 1
    assert ledger.numbers() == list(range(10))


def test_a_few_records_are_not_worth_an_index(url: str) -> None:
    ledger = fill(url, range(3))
    assert len(list(ledger.digests(keep=True))) == 3
    assert indices(url) == []


def test_an_index_proves_nothing(url: str) -> None:
    ledger = fill(url, range(10))
    list(ledger.digests(keep=True))
    delete(join_url(folder_of(url), "00000004.json"))
    assert [digest.partition for digest in ledger.digests()] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("how", ["torn", "text", "foreign"])
def test_an_index_that_does_not_fit_is_left_aside(url: str, how: str) -> None:
    ledger = fill(url, range(10))
    expected = list(ledger.digests(keep=True))
    (name,) = indices(url)
    place = join_url(folder_of(url), name)
    whole = read_bytes(place)
    if how == "foreign":
        other = OutputLayout("job-2", (), {}, 10, 10 * COUNT, {})
        list(fill(url, range(8), other).digests(keep=True))
        (stranger,) = [name for name in list_names(folder_of(url, "job-2")) if name.startswith("index-")]
        whole = read_bytes(join_url(folder_of(url, "job-2"), stranger))
        replace_bytes(place, whole)
    else:
        replace_bytes(place, whole[:-9] if how == "torn" else b"PAR1")
    assert list(ledger.digests()) == expected
    damage(url, range(3, 4))
    with pytest.raises(IntegrityError, match="is not a commit record"):
        list(ledger.digests())


def test_a_bit_that_turned_changes_nothing(url: str) -> None:
    ledger = fill(url, range(10))
    expected = list(ledger.digests(keep=True))
    (name,) = indices(url)
    place = join_url(folder_of(url), name)
    whole = read_bytes(place)
    for position in range(0, len(whole), campaign_size(97, 1)):
        replace_bytes(place, whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        assert list(ledger.digests()) == expected, position


@settings(max_examples=campaign_size(20, 500), deadline=None)
@given(
    st.sets(st.integers(0, COUNT - 1)),
    st.lists(st.sets(st.integers(0, COUNT - 1), min_size=1), max_size=20),
    st.booleans(),
)
def test_whatever_the_indices_hold(exist: set[int], held: list[set[int]], keep: bool) -> None:
    url = f"memory://commits-{make_nonce()}"
    ledger = Ledger(url, LAYOUT)
    for number in exist:
        record = make_record(number, number % 3)
        replace_bytes(join_url(folder_of(url), f"{number:08d}.json"), canonical_json(record.model_dump(mode="json")))
    for numbers in held:
        ledger.keep(CommitDigest.of(make_record(number, number % 3)) for number in numbers)
    assert len(indices(url)) == len(held)
    expected = [CommitDigest.of(record) for record in ledger.committed()]
    assert list(ledger.digests(keep)) == expected
    assert [digest.partition for digest in expected] == sorted(exist)
    assert len(indices(url)) <= (17 if keep else len(held))
    assert list(ledger.digests()) == expected
    delete(url, recursive=True)


def test_indices_do_not_pile_up(url: str) -> None:
    ledger = fill(url, range(COUNT))
    for number in range(17):
        ledger.keep([CommitDigest.of(make_record(number, number % 3))])
    expected = list(ledger.digests(keep=True))
    assert len(indices(url)) == 1
    damage(url, range(COUNT))
    assert list(ledger.digests()) == expected


def test_new_records_are_written_down_as_they_come(url: str) -> None:
    pins = tuple(Pin(generation=number, snapshot=f"sha256:{number:064x}", scope=number) for number in range(2))
    generations = Generations(pins=pins, owned={1: ((5, COUNT),)})
    ours = Standing(url, LAYOUT, lambda: generations)
    writes = []
    for number in range(8):
        record = make_record(number, generation=int(number >= 4))
        Ledger(url, LAYOUT, record.generation).commit(record)
        if (keep := ours.note(record)) is not None:
            writes.append(keep)
    assert len(writes) == 2
    assert not any(ours.note(make_record(number).model_copy(update={"round": 1})) for number in range(8))
    for keep in writes:
        keep()
    damage(url, range(4))
    # Partition 4 was taken from the older scope by nobody: there its commit in the newer one does not count.
    assert sorted(digest.partition for digest in ours.digests()) == [0, 1, 2, 3, 5, 6, 7]
    assert sorted(ours.numbers()) == [0, 1, 2, 3, 5, 6, 7]


def test_a_store_that_takes_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = fill(str(tmp_path / "out"), range(6))
    expected = [CommitDigest.of(record) for record in ledger.committed()]

    def refuse(url: str, data: bytes) -> bool:
        raise StorageError(f"cannot create {url}")

    monkeypatch.setattr(commits, "create", refuse)
    assert list(ledger.digests(keep=True)) == expected
    assert CommitIndex(folder_of(str(tmp_path / "out")), JOB, []).read([0, 1]).num_rows == 0
