"""Which partition is committed on which snapshot, in two bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableMapping


class SnapshotMap(MutableMapping[int, str]):
    """Partition -> the snapshot that it is committed on.

    Parameters
    ----------
    partitions
        How many the input has.

    Examples
    --------
    >>> places = SnapshotMap(3)
    >>> places[1] = "sha256:ab"
    >>> dict(places), len(places)
    ({1: 'sha256:ab'}, 1)
    """

    def __init__(self, partitions: int) -> None:
        self._places = array("H", bytes(2 * partitions))
        self._snapshots: list[str] = []
        self._count = 0

    def __getitem__(self, partition: int) -> str:
        place = self._places[partition] if 0 <= partition < len(self._places) else 0
        if not place:
            raise KeyError(partition)
        return self._snapshots[place - 1]

    def __setitem__(self, partition: int, snapshot: str) -> None:
        if snapshot not in self._snapshots:
            self._snapshots.append(snapshot)
        self._count += not self._places[partition]
        self._places[partition] = self._snapshots.index(snapshot) + 1

    def __delitem__(self, partition: int) -> None:
        self[partition]  # raises where there is none
        self._places[partition] = 0
        self._count -= 1

    def __iter__(self) -> Iterator[int]:
        return (number for number, place in enumerate(self._places) if place)

    def __len__(self) -> int:
        return self._count
