"""The versions of a model, and which of them were yanked.

A versions log holds `publish`, `yank` and `unyank` records. Numbers count the `publish` records only, so yanking never
shifts them. An `unyank` names the yanks that it takes back: the same records in any order mean the same, so two
registries that exchange them agree.
"""

from __future__ import annotations

from typing import Any

from daskinfer.errors import CheckpointError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.version_log import Version


def yank(registry: Registry, name: str, target: str, reason: str | None = None) -> Version:
    """Make `v3` or `sha256:...` a version that no name leads to any more; who holds a lock on it keeps it.

    Raises
    ------
    CheckpointError
        Where there is no such version, or it is yanked already.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> yank(registry, "mini", "v2", "wrong labels").yanked.reason
    'wrong labels'
    >>> registry.resolve("mini").version
    1
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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> taken = yank(registry, "mini", "v1")
    >>> unyank(registry, "mini", "v1").yanked is None
    True
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
