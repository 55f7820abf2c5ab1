"""The slot log: numbered records, each created exclusively; compare-and-swap and history without a server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daskinfer.errors import Conflict, IntegrityError
from daskinfer.ids import canonical_json, make_nonce, parse_json, sha256_of
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, list_names, read_record
from daskinfer.storage.objects.urls import join_url

_SLOT = re.compile(r"(\d{12})\.json")
_PUT_BACK = "It was damaged or changed by hand: put it back, from a copy of the folder."


@dataclass(frozen=True, slots=True)
class Slot:
    """One record of a slot log."""

    sequence: int
    """Its number, from 0, without gaps."""
    record: dict[str, Any]
    """What was appended."""
    digest: str = ""
    """`sha256:...` of the stored bytes; empty where it was not read from a log."""


def encode_record(record: dict[str, Any]) -> bytes:
    """Return what a slot holds for a record: no two of them are equal bytes.

    Examples
    --------
    >>> encode_record({"op": "seal"}) == encode_record({"op": "seal"})
    False
    """
    return canonical_json({**record, "nonce": make_nonce()})


class _Record(dict[str, Any]):
    """A record as it was read: what it lacks is damage on disk, of which its reader need not know the place."""

    def __init__(self, url: str, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self._url = url

    def __missing__(self, key: str) -> Any:
        raise IntegrityError(f"{self._url} does not say '{key}'", hint=_PUT_BACK)


class SlotLog:
    """An append-only log in a folder: `000000000000.json`, `000000000001.json`, ...

    Parameters
    ----------
    url
        The folder; it need not exist.

    Examples
    --------
    >>> log = SlotLog("aliases/prod")
    >>> log.append({"version": 1}).sequence, log.append({"version": 2}).sequence
    (0, 1)
    >>> log.head().record["version"]
    2
    >>> log.append({"version": 3}, expect=1)
    Traceback (most recent call last):
        ...
    daskinfer.errors.Conflict: slot 1 of aliases/prod cannot be had: the next free one is 2
    Look at what changed, then try again.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def head(self) -> Slot | None:
        """Return the last record, None while the log is empty. A stale listing does no harm."""
        sequence = self._listed_head()
        head = None if sequence is None else self._read_slot(sequence)
        while (following := self._probe(0 if head is None else head.sequence + 1)) is not None:
            head = following
        return head

    def read(self) -> list[Slot]:
        """Return all records, oldest first.

        Raises
        ------
        IntegrityError
            Where a record is missing or damaged.
        """
        head = self.head()
        if head is None:
            return []
        return [*(self._read_slot(sequence) for sequence in range(head.sequence)), head]

    def follow(self, start: int) -> Iterator[Slot]:
        """Yield the records from a number on, one by one, without listing: where there is none, one look is all it takes."""
        while (slot := self._probe(start)) is not None:
            yield slot
            start += 1

    def read_raw(self) -> list[bytes]:
        """Return the stored bytes of all records, oldest first: to compare and to copy them."""
        head = self.head()
        return (
            []
            if head is None
            else [read_record(self.slot_url(number), LARGEST_MANIFEST) for number in range(head.sequence + 1)]
        )

    def slot_url(self, sequence: int) -> str:
        """Return where a record lies, or would."""
        return join_url(self.url, f"{sequence:012d}.json")

    def digest_at(self, sequence: int) -> str | None:
        """Return the digest of the bytes in a slot, whatever they are; None where it is free."""
        try:
            return sha256_of(read_record(self.slot_url(sequence), LARGEST_MANIFEST))
        except FileNotFoundError:
            return None

    def append(self, record: dict[str, Any], expect: int | None = None) -> Slot:
        """Append a record to the end of the log.

        Parameters
        ----------
        record
            JSON-like; the key `nonce` is ours.
        expect
            Number that the record must get. By default it gets the next free one, however many writers there are.

        Raises
        ------
        Conflict
            Where the number `expect` is taken, or not yet due.
        """
        data = encode_record(record)
        head = self.head()
        sequence = 0 if head is None else head.sequence + 1
        if expect is not None and expect != sequence:
            raise self._conflict(expect, f"the next free one is {sequence}")
        while not create(self.slot_url(sequence), data):
            if expect is not None:
                raise self._conflict(expect, "another writer took it first")
            sequence += 1
        return Slot(sequence, dict(record), sha256_of(data))

    def _conflict(self, expect: int, reason: str) -> Conflict:
        return Conflict(
            f"slot {expect} of {self.url} cannot be had: {reason}", hint="Look at what changed, then try again."
        )

    def _listed_head(self) -> int | None:
        matches = [match for name in list_names(self.url) if (match := _SLOT.fullmatch(name))]
        return int(matches[-1].group(1)) if matches else None

    def _probe(self, sequence: int) -> Slot | None:
        url = self.slot_url(sequence)
        try:
            data = read_record(url, LARGEST_MANIFEST)
        except FileNotFoundError:
            return None
        try:
            record = parse_json(data)
            del record["nonce"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise IntegrityError(f"{url} is not a record of a slot log", hint=_PUT_BACK) from error
        return Slot(sequence, _Record(url, record), sha256_of(data))

    def _read_slot(self, sequence: int) -> Slot:
        slot = self._probe(sequence)
        if slot is None:
            raise IntegrityError(
                f"record {sequence} of {self.url} is missing", hint="The log was damaged; restore it from a backup."
            )
        return slot
