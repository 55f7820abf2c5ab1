"""Which snapshots are kept although nobody works with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import Publication


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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> keepers = find_keepers(registry, Retention(keep_versions=1, keep_days=0), (), ())
    >>> keepers[registry.resolve("mini@v2").snapshot], len(keepers)
    (['among the last 1 of mini', 'alias mini@prod'], 1)
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
    standing = []
    for version in registry.versions(name):
        if version.yanked is None and version.snapshot not in swept:
            standing.append(version.snapshot)
        age = datetime.now(UTC) - datetime.fromisoformat(version.created)
        if retention.keep_days and age < timedelta(days=retention.keep_days):
            keepers[version.snapshot].append(f"younger than {retention.keep_days:g} days")
    newest = standing[-retention.keep_versions :] if retention.keep_versions else []
    for snapshot in dict.fromkeys(newest):
        keepers[snapshot].append(f"among the last {retention.keep_versions} of {name}")


def name_versions(registry: Registry) -> dict[str, list[str]]:
    """Return the versions that snapshots are or were, by snapshot: `minilm v3`.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> list(name_versions(make_registry("registry", versions=2)).values())
    [['mini v1'], ['mini v2']]
    """
    versions: dict[str, list[str]] = defaultdict(list)
    for name in registry.names():
        for version in registry.versions(name):
            versions[version.snapshot].append(f"{name} v{version.number}")
    return versions
