"""Which folder gave which snapshot: a folder that has not changed since it was published is not looked into again."""

from __future__ import annotations

import json

from daskinfer.ids import canonical_json, digest_of, shorten
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.filesystem import join_url, read_bytes, replace_bytes
from daskinfer.storage.folder import Folder
from daskinfer.storage.registry.catalog import Registry

# What is read of a checkpoint, and refused: a folder that was published when that was less is looked into again.
_READING = 3


def identify_source(name: str, folder: Folder, entry: str | None, dtype: str | None) -> str | None:
    """Return what a publish is known by; None where the store does not tell whether its files have changed.

    Parameters
    ----------
    name
        Model name.
    folder
        Where the checkpoint is.
    entry
        Digest of the user's own code, if any.
    dtype
        Precision it is converted to, if any.
    """
    stamps = folder.stamps()
    return None if stamps is None else digest_of([_READING, name, folder.url, stamps, entry, dtype])


def recall_source(registry: Registry, source: str | None) -> Resolution | None:
    """Return the version that a source became, while it lives."""
    if source is None:
        return None
    try:
        record = json.loads(read_bytes(_record_url(registry, source)))
    except FileNotFoundError:
        return None
    name, snapshot = record["name"], record["snapshot"]
    version = next((each for each in reversed(registry.versions(name)) if each.snapshot == snapshot), None)
    if version is None or registry.life(snapshot) != "live":
        return None
    return registry.resolve(f"{name}@v{version.number}")


def remember_source(registry: Registry, source: str | None, resolution: Resolution) -> None:
    """Record which version a source became."""
    if source is not None:
        record = {"name": resolution.name, "snapshot": resolution.snapshot}
        replace_bytes(_record_url(registry, source), canonical_json(record))


def _record_url(registry: Registry, source: str) -> str:
    return join_url(registry.url, "sources", f"{shorten(source, 64)}.json")
