"""What the names of a checkpoint lead to: moving aliases, taking moves back, yanking versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskinfer.spec.registry.listing import AliasMove, VersionRow
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.registry import aliases, yanking
from daskinfer.storage.registry.catalog import Registry


def set_alias(
    name: str,
    alias: str,
    target: str,
    *,
    registry: str,
    expect: int | None = None,
    reason: str | None = None,
    gate: Mapping[str, Any] | None = None,
) -> Resolution:
    """Point an alias at `v3`, `sha256:...` or where another alias points; running jobs keep their snapshot.

    Parameters
    ----------
    name, alias, target
        Which alias of which model, and where to.
    registry
        URL of the registry.
    expect
        Number that this move must get in the alias's history; by default it comes after whatever is there.
    reason
        Why; it stays in the history.
    gate
        Report of whatever let the version pass, JSON-like; it stays in the history.

    Raises
    ------
    Conflict
        Someone else moved the alias first.
    CheckpointError
        There is no such target, or it was yanked.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> set_alias("mini", "prod", "v2", registry=registry, reason="v3 is slow").version
    2
    >>> set_alias("mini", "prod", "v1", registry=registry, expect=3)
    Traceback (most recent call last):
        ...
    daskinfer.errors.Conflict: mini@prod was moved to v2 by ...
    """
    found = Registry(registry)
    move = aliases.set_alias(found, name, alias, target, expect=expect, reason=reason, gate=gate)
    return _resolve(f"{name}@{alias}", name, move)


def unset_alias(
    name: str, alias: str, *, registry: str, expect: int | None = None, reason: str | None = None
) -> AliasMove:
    """Let an alias point nowhere; its history stays.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> move = unset_alias("mini", "prod", registry=registry)
    >>> move.sequence, move.version
    (3, None)
    """
    return aliases.unset_alias(Registry(registry), name, alias, expect=expect, reason=reason)


def alias_history(name: str, alias: str, *, registry: str) -> list[AliasMove]:
    """Return every move of an alias, oldest first.

    Raises
    ------
    CheckpointError
        It was never set.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> [(move.sequence, move.version) for move in alias_history("mini", "prod", registry=registry)]
    [(0, 1), (1, 2), (2, 3)]
    """
    return aliases.read_history(Registry(registry), name, alias)


def roll_back(
    name: str,
    alias: str,
    *,
    registry: str,
    to: int | None = None,
    expect: int | None = None,
    reason: str | None = None,
) -> Resolution:
    """Point an alias at what it pointed at before, as a new move.

    Parameters
    ----------
    name, alias
        Which alias of which model.
    registry
        URL of the registry.
    to
        Number of the earlier move to go back to; by default the last one with another target. A second rollback goes
        back further.
    expect
        Number that this move must get in the alias's history.
    reason
        Why; it stays in the history.

    Raises
    ------
    Conflict
        Someone else moved the alias meanwhile.
    CheckpointError
        There is no such move, or its target was yanked.
    SnapshotGone
        Its target was deleted.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> roll_back("mini", "prod", registry=registry).version, roll_back("mini", "prod", registry=registry).version
    (2, 1)
    """
    move = aliases.roll_back(Registry(registry), name, alias, to=to, expect=expect, reason=reason)
    return _resolve(f"{name}@{alias}", name, move)


def yank(name: str, version: str, *, registry: str, reason: str | None = None, undo: bool = False) -> VersionRow:
    """Make `v3` a version that no name leads to any more, or take that back; running jobs keep it.

    Raises
    ------
    CheckpointError
        There is no such version, or nothing is left to do.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> yank("mini", "v2", registry=registry, reason="wrong labels").yanked.reason
    'wrong labels'
    >>> set_alias("mini", "prod", "v2", registry=registry)
    Traceback (most recent call last):
        ...
    daskinfer.errors.YankedVersion: mini v2 was yanked by ...
    """
    row = (yanking.unyank if undo else yanking.yank)(Registry(registry), name, version, reason)
    return VersionRow(number=row.number, snapshot=row.snapshot, yanked=row.yanked)


def _resolve(reference: str, name: str, move: AliasMove) -> Resolution:
    # What this move made of it: by now somebody else may have moved it on.
    assert move.snapshot is not None
    return Resolution(
        reference=reference,
        name=name,
        snapshot=move.snapshot,
        version=move.version,
        alias=move.alias,
        sequence=move.sequence,
    )
