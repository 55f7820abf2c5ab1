"""The versions of a model, and which of them were yanked.

A versions log holds `publish`, `yank` and `unyank` records. Numbers count the `publish` records only, so yanking never
shifts them. An `unyank` names the yanks that it takes back: the same records in any order mean the same, so two
registries that exchange them agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskinfer.errors import CheckpointError, YankedVersion
from daskinfer.ids import make_nonce
from daskinfer.spec.registry.listing import Yank
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.registry import authorised_writes
from daskinfer.storage.registry.authorised_writes import Decision

if TYPE_CHECKING:
    from daskinfer.storage.registry.catalog import Registry


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
    """Return the versions that the records of a versions log make, oldest first."""
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
    """Return the newest version of a snapshot, one that was not yanked before one that was."""
    found = [each for each in versions if each.snapshot == snapshot]
    return max(found, key=lambda each: (each.yanked is None, each.number), default=None)


def refuse_yanked(name: str, version: Version) -> None:
    """Raise `YankedVersion` for a version that was yanked."""
    if version.yanked is not None:
        raise YankedVersion(
            f"{name} v{version.number} was yanked {version.yanked}",
            hint=f"Choose another version, take that back (daskinfer checkpoint yank {name} v{version.number} --undo), or "
            f"run on it by its full digest: {name}@{version.snapshot}",
        )


def yank(registry: Registry, name: str, target: str, reason: str | None = None) -> Version:
    """Make `v3` or `sha256:...` a version that no name leads to any more; who holds a lock on it keeps it.

    Raises
    ------
    CheckpointError
        Where there is no such version, or it is yanked already.
    """
    version = registry.find_version(name, target)
    if version.yanked is not None:
        raise CheckpointError(
            f"{name} v{version.number} is yanked already, {version.yanked}", hint="Nothing is left to do."
        )
    record = {"op": "yank", "version": version.number, "yank": make_nonce(), "reason": reason, **make_signature()}
    return _append(registry, name, record)


def unyank(registry: Registry, name: str, target: str, reason: str | None = None) -> Version:
    """Take back every yank of a version.

    Raises
    ------
    CheckpointError
        Where there is no such version, or it is not yanked.
    """
    version = registry.find_version(name, target)
    if version.yanked is None:
        raise CheckpointError(f"{name} v{version.number} is not yanked", hint="Nothing is left to do.")
    undoes = [each.identity for each in version.yanks]
    record = {"op": "unyank", "version": version.number, "undoes": undoes, "reason": reason, **make_signature()}
    return _append(registry, name, record)


def _append(registry: Registry, name: str, record: dict[str, Any]) -> Version:
    authorised_writes.append(
        Decision(registry.url, "yank", f"models/{name}/versions"), registry.versions_log(name), record
    )
    return registry.find_version(name, f"v{record['version']}")
