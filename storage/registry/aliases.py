"""Aliases: names of versions that move, every move a record that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskinfer.errors import CheckpointError, Conflict
from daskinfer.ids import make_nonce
from daskinfer.spec.registry.listing import AliasMove
from daskinfer.storage.objects.naming import check_alias, make_signature
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.version_log import describe_move, find_version, refuse_yanked


def set_alias(
    registry: Registry,
    name: str,
    alias: str,
    target: str,
    *,
    expect: int | None = None,
    publish: str | None = None,
    reason: str | None = None,
    gate: Mapping[str, Any] | None = None,
) -> AliasMove:
    """Point an alias at a version, under a lock on it so that garbage collection cannot come between.

    Parameters
    ----------
    registry
        Where.
    name, alias
        Which alias of which model.
    target
        `v3`, `sha256:...`, or another alias.
    expect
        Number that this move must get in the alias's history; by default it comes after whatever is there.
    publish
        Id of the publish that asks for it.
    reason
        Why; it stays in the history.
    gate
        Report of whatever let the version pass; it stays in the history.

    Raises
    ------
    Conflict
        Where someone else moved the alias first.
    CheckpointError
        Where there is no such target, it was yanked, or the alias's name is not allowed.
    SnapshotGone
        Where the target is being deleted.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> set_alias(registry, "mini", "prod", "v1", reason="v2 is slower").sequence
    2
    >>> registry.resolve("mini@prod").version
    1
    """
    check_alias(alias)
    snapshot = registry.resolve(f"{name}@{target}").snapshot
    record: dict[str, Any] = {"op": "set", "snapshot": snapshot, "publish": publish, **make_signature()}
    if reason is not None:
        record["reason"] = reason
    if gate is not None:
        record["gate"] = dict(gate)
    return append_move(registry, name, alias, record, expect)


def unset_alias(
    registry: Registry, name: str, alias: str, *, expect: int | None = None, reason: str | None = None
) -> AliasMove:
    """Let an alias point nowhere; its history stays, and it can be set again.

    Raises
    ------
    Conflict
        Where someone else moved the alias first.
    CheckpointError
        Where it points nowhere already.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> unset_alias(registry, "mini", "prod").operation, registry.aliases("mini")
    ('unset', {})
    """
    registry.resolve(f"{name}@{alias}", yanked=True)
    record = {"op": "unset", "snapshot": None, "publish": None, "reason": reason, **make_signature()}
    return append_move(registry, name, alias, record, expect)


def roll_back(
    registry: Registry,
    name: str,
    alias: str,
    *,
    to: int | None = None,
    expect: int | None = None,
    reason: str | None = None,
) -> AliasMove:
    """Point an alias at what it pointed at before, as a new move.

    Parameters
    ----------
    registry
        Where.
    name, alias
        Which alias of which model.
    to
        Number of the earlier move to go back to. By default the last one that had another target; a second rollback
        goes back further, not forth.
    expect
        Number that this move must get in the alias's history.
    reason
        Why; it stays in the history.

    Raises
    ------
    Conflict
        Where someone else moved the alias meanwhile.
    CheckpointError
        Where there is no such move, or its target was yanked.
    SnapshotGone
        Where its target was deleted.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> move = roll_back(make_registry("registry", versions=2), "mini", "prod")
    >>> move.version, move.rollback_of, move.restores
    (1, 1, 0)
    """
    history = read_history(registry, name, alias)
    head = history[-1]
    if to is None:
        latest = head.sequence if head.restores is None else head.restores
        earlier = [move for move in history[:latest] if move.snapshot not in (None, head.snapshot)]
        if not earlier:
            raise CheckpointError(
                f"{name}@{alias} has no earlier target", hint=f"Look at: daskinfer checkpoint history {name} {alias}"
            )
        aim = earlier[-1]
    elif 0 <= to < len(history):
        aim = history[to]
    else:
        raise CheckpointError(f"{name}@{alias} has no move {to}", hint=f"It has 0 to {head.sequence}.")
    if aim.snapshot is None:
        raise CheckpointError(f"move {aim.sequence} of {name}@{alias} unset it", hint="Use: checkpoint alias --unset")
    record = {
        "op": "set",
        "snapshot": aim.snapshot,
        "publish": None,
        "reason": reason,
        "rollback_of": head.sequence,
        "restores": aim.sequence,
        **make_signature(),
    }
    # What was looked at must still be the head, or another's move would be taken back unseen.
    return append_move(registry, name, alias, record, head.sequence + 1 if expect is None else expect)


def append_move(
    registry: Registry, name: str, alias: str, record: dict[str, Any], expect: int | None = None
) -> AliasMove:
    """Append a move to an alias's history, under a lock on its target.

    Raises
    ------
    Conflict
        Where someone else moved the alias first.
    YankedVersion
        Where the target was yanked: nobody could take it by the alias.
    SnapshotGone
        Where the target was deleted, or is about to be.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> record = {"op": "set", "snapshot": registry.resolve("mini").snapshot, "publish": None, **make_signature()}
    >>> append_move(registry, "mini", "canary", record, expect=0).alias
    'canary'
    """
    log = registry.alias_log(name, alias)
    version = find_version(registry.versions(name), record["snapshot"])
    if version is not None:
        refuse_yanked(name, version)
    decision = Decision(registry.url, "alias", f"models/{name}/aliases/{alias}")
    lock = None
    if record["snapshot"] is not None:
        lock = locks.take(registry, record["snapshot"], f"alias-{make_nonce()}", purpose="alias")
    try:
        slot = authorised_writes.append(decision, log, record, expect)
    except Conflict as conflict:
        raise explain_conflict(registry, name, alias, expect) from conflict
    finally:
        if lock is not None:
            lock.release()
    return describe_move(alias, slot, registry.versions(name))


def explain_conflict(registry: Registry, name: str, alias: str, expect: int | None) -> Conflict:
    """Return what to say where a move did not get the number that it had to have: who came first.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> explain_conflict(make_registry("registry", versions=1), "mini", "canary", 3).message
    'mini@canary was never moved, so the next move is 0, not 3'
    """
    history = registry.alias_history(name, alias)
    hint = f"Look at what changed, then try again: daskinfer checkpoint history {name} {alias}"
    if not history:
        return Conflict(f"{name}@{alias} was never moved, so the next move is 0, not {expect}", hint=hint)
    head = history[-1]
    return Conflict(
        f"{name}@{alias} was moved to {head.target} by {head.by} at {head.created} (move {head.sequence}), "
        f"so the next move is {head.sequence + 1}, not {expect}",
        hint=hint,
    )


def read_history(registry: Registry, name: str, alias: str) -> list[AliasMove]:
    """Return every move of an alias that was set at least once, oldest first.

    Raises
    ------
    CheckpointError
        Where it never was.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> [move.version for move in read_history(make_registry("registry", versions=2), "mini", "prod")]
    [1, 2]
    """
    history = registry.alias_history(name, alias)
    if not history:
        registry.resolve(f"{name}@{alias}", yanked=True)  # tells what is wrong with the name
    return history
