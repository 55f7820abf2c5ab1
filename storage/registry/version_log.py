"""What the records of a model's logs stand for: its versions, yanks, and moves of its aliases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from daskinfer.errors import YankedVersion
from daskinfer.ids import digest_of
from daskinfer.spec.registry.listing import AliasMove, Yank
from daskinfer.storage.objects.slotlog import Slot


@dataclass(frozen=True, slots=True)
class Version:
    """One published version of a model."""

    number: int
    """3 for v3."""
    snapshot: str
    """Snapshot digest."""
    created: str
    """ISO 8601, UTC."""
    by: str
    """Who published it: user@host."""
    publish: str
    """Id of the publish that made it."""
    yanks: tuple[Yank, ...] = ()
    """What nobody has taken back, oldest first; it is yanked while there is any."""

    @property
    def yanked(self) -> Yank | None:
        """Who yanked it; None while it may be taken."""
        return self.yanks[-1] if self.yanks else None


def fold(records: Iterable[dict[str, Any]]) -> list[Version]:
    """Return the versions that the records of a versions log make, oldest first.

    Examples
    --------
    >>> publish = {"op": "publish", "snapshot": "sha256:ab", "at": "2026-01-02", "by": "ann@host", "publish": "12"}
    >>> taken = {"op": "yank", "version": 1, "yank": "34", "by": "ann@host", "at": "2026-01-03", "reason": "wrong labels"}
    >>> [(each.number, each.yanked is None) for each in fold([publish, {**publish, "snapshot": "sha256:cd"}, taken])]
    [(1, False), (2, True)]
    """
    published: list[dict[str, Any]] = []
    yanks: dict[int, list[Yank]] = {}
    undone: set[str] = set()
    for record in records:
        if record["op"] == "publish":
            published.append(record)
        elif record["op"] == "yank":
            found = Yank(identity=record["yank"], by=record["by"], created=record["at"], reason=record["reason"])
            yanks.setdefault(record["version"], []).append(found)
        else:
            undone.update(record["undoes"])
    return [
        Version(
            number,
            record["snapshot"],
            record["at"],
            record["by"],
            record["publish"],
            tuple(each for each in yanks.get(number, ()) if each.identity not in undone),
        )
        for number, record in enumerate(published, start=1)
    ]


def find_version(versions: Sequence[Version], snapshot: str | None) -> Version | None:
    """Return the newest version of a snapshot, one that was not yanked before one that was.

    Examples
    --------
    >>> versions = [Version(number, "sha256:ab", "2026-01-02", "ann@host", "12") for number in (1, 2)]
    >>> find_version(versions, "sha256:ab").number, find_version(versions, "sha256:cd")
    (2, None)
    """
    found = [each for each in versions if each.snapshot == snapshot]
    return max(found, key=lambda each: (each.yanked is None, each.number), default=None)


def refuse_yanked(name: str, version: Version) -> None:
    """Raise `YankedVersion` for a version that was yanked.

    Examples
    --------
    >>> taken = Yank(identity="34", by="ann@host", created="2026-01-03", reason="wrong labels")
    >>> refuse_yanked("tiny", Version(1, "sha256:ab", "2026-01-02", "ann@host", "12", (taken,)))
    Traceback (most recent call last):
        ...
    daskinfer.errors.YankedVersion: tiny v1 was yanked by ann@host at 2026-01-03: wrong labels...
    """
    if version.yanked is not None:
        raise YankedVersion(
            f"{name} v{version.number} was yanked {version.yanked}",
            hint=f"Choose another version, take that back (daskinfer checkpoint yank {name} v{version.number} --undo), or "
            f"run on it by its full digest: {name}@{version.snapshot}",
        )


def describe_move(alias: str, slot: Slot, versions: Sequence[Version]) -> AliasMove:
    """Return the move that a record of an alias's log stands for.

    Examples
    --------
    >>> record = {"op": "set", "snapshot": "sha256:ab", "at": "2026-01-03", "by": "ann@host", "publish": None}
    >>> move = describe_move("prod", Slot(0, record), [Version(1, "sha256:ab", "2026-01-02", "ann@host", "12")])
    >>> move.alias, move.operation, move.version
    ('prod', 'set', 1)
    """
    record = slot.record
    version = find_version(versions, record["snapshot"])
    gate = record.get("gate")
    return AliasMove(
        alias=alias,
        sequence=slot.sequence,
        operation=record["op"],
        snapshot=record["snapshot"],
        version=None if version is None else version.number,
        created=record["at"],
        by=record["by"],
        publish=record["publish"],
        reason=record.get("reason"),
        gate=None if gate is None else digest_of(gate),
        rollback_of=record.get("rollback_of"),
        restores=record.get("restores"),
    )
