"""Which folder gave which snapshot: a folder that has not changed since it was published is not looked into again.

This machine's own notes, for each registry: whoever else may write to a registry must not say what a folder holds.
"""

from __future__ import annotations

from contextlib import suppress

from daskinfer.errors import StorageError
from daskinfer.ids import canonical_json, digest_of, parse_json, shorten
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.tensors.folder import Folder
from daskinfer.storage.tensors.node_cache import private_folder

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

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("tiny").mkdir()
    >>> before = identify_source("tiny", Folder("tiny"), entry=None, dtype=None)
    >>> _ = Path("tiny/config.json").write_text("{}")
    >>> before == identify_source("tiny", Folder("tiny"), entry=None, dtype=None)
    False
    """
    stamps = folder.stamps()
    return None if stamps is None else digest_of([_READING, name, folder.url, stamps, entry, dtype])


def recall_source(registry: Registry, source: str | None) -> Resolution | None:
    """Return the version that a source became, while it lives.

    Examples
    --------
    >>> recall_source(Registry("registry"), "sha256:ab") is None
    True
    """
    place = _find_place(registry, source)
    if place is None:
        return None
    try:
        record = parse_json(read_record(place))
        name, snapshot = record["name"], record["snapshot"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    version = next((each for each in reversed(registry.versions(name)) if each.snapshot == snapshot), None)
    if version is None or registry.life(snapshot) != "live":
        return None
    return registry.resolve(f"{name}@v{version.number}")


def remember_source(registry: Registry, source: str | None, resolution: Resolution) -> None:
    """Record which version a source became.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> remember_source(registry, "sha256:ab", registry.resolve("mini@v1"))
    >>> recall_source(registry, "sha256:ab").version
    1
    """
    if (place := _find_place(registry, source)) is not None:
        # A cache that is full is no reason to stop.
        with suppress(StorageError, OSError):
            replace_bytes(place, canonical_json({"name": resolution.name, "snapshot": resolution.snapshot}))


def _find_place(registry: Registry, source: str | None) -> str | None:
    folder = None if source is None else private_folder("sources")
    return None if folder is None else str(folder / f"{shorten(digest_of([registry.url, source]), 64)}.json")
