"""Which snapshots are kept although nobody works with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publications import Publication


@dataclass(frozen=True)
class Retention:
    """Rules of what to keep. They are for people: no rule makes anything safer, and no clock can make it less safe."""

    keep_versions: int = 3
    """How many of the newest versions of every name, yanked and deleted ones not counted."""
    keep_days: float = 1.0
    """Days for which a version is kept after it was published."""


def find_keepers(
    registry: Registry, retention: Retention, publications: Iterable[Publication], swept: Collection[str]
) -> dict[str, list[str]]:
    """Return why snapshots are kept, by snapshot; only those that are.

    Parameters
    ----------
    registry
        Whose.
    retention
        The rules.
    publications
        What is not done, as it was listed before: a publish that was done by then has its version and its alias.
    swept
        Snapshots that are deleted.
    """
    keepers: dict[str, list[str]] = defaultdict(list)
    for publication in publications:
        if publication.manifest is not None and publication.state != "aborted":
            keepers[publication.manifest.digest].append(f"{publication.job} is not done")
    for name in registry.names():
        _keep_versions(registry, name, retention, swept, keepers)
        for alias in registry.alias_names(name):
            head = registry.alias_log(name, alias).head()
            if head is not None and head.record.get("snapshot"):
                keepers[head.record["snapshot"]].append(f"alias {name}@{alias}")
    return dict(keepers)


def _keep_versions(
    registry: Registry, name: str, retention: Retention, swept: Collection[str], keepers: dict[str, list[str]]
) -> None:
    records = [slot.record for slot in registry.versions_log(name).read()]
    published = [record for record in records if record["op"] == "publish"]
    yanked = find_yanked(records)
    standing = []
    for number, record in enumerate(published, start=1):
        if number not in yanked and record["snapshot"] not in swept:
            standing.append(record["snapshot"])
        age = datetime.now(UTC) - datetime.fromisoformat(record["at"])
        if retention.keep_days and age < timedelta(days=retention.keep_days):
            keepers[record["snapshot"]].append(f"younger than {retention.keep_days:g} days")
    newest = standing[-retention.keep_versions :] if retention.keep_versions else []
    for snapshot in dict.fromkeys(newest):
        keepers[snapshot].append(f"among the last {retention.keep_versions} of {name}")


def name_versions(registry: Registry) -> dict[str, list[str]]:
    """Return the versions that snapshots are or were, by snapshot: `minilm v3`."""
    versions: dict[str, list[str]] = defaultdict(list)
    for name in registry.names():
        records = [slot.record for slot in registry.versions_log(name).read()]
        for number, record in enumerate((each for each in records if each["op"] == "publish"), start=1):
            versions[record["snapshot"]].append(f"{name} v{number}")
    return versions


def find_yanked(records: Iterable[dict[str, Any]]) -> set[int]:
    """Return the numbers of the yanked versions of a versions log; numbers count `publish` records."""
    yanks: dict[int, set[str]] = defaultdict(set)
    undone: set[str] = set()
    for record in records:
        if record["op"] == "yank":
            yanks[record["version"]].add(record.get("yank", ""))
        elif record["op"] == "unyank":
            undone.update(record.get("undoes", ()))
            if "undoes" not in record:
                yanks.pop(record["version"], None)
    return {number for number, identities in yanks.items() if identities - undone}
