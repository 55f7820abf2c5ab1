"""Policies: plug-ins of the user's own that are asked before anything is decided about a registry.

A policy is a function in the entry-point group `daskinfer.policy`::

    def authorize(principal: str, action: str, resource: str, context: Mapping[str, Any]) -> None: ...

It returns None, or raises `daskinfer.errors.NotAllowed`. All installed ones are asked. One that cannot be imported,
raises anything else, or returns a value refuses: nobody would notice a guard that had stopped working.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from daskinfer.errors import NotAllowed
from daskinfer.ids import canonical_json, parse_json

GROUP = "daskinfer.policy"
"""The entry-point group."""

Policy = Callable[[str, str, str, Mapping[str, Any]], object]
"""Called with principal, action, resource and context."""


def authorize(principal: str, action: str, resource: str, registry: str, record: Mapping[str, Any]) -> None:
    """Ask every installed policy whether a decision may be taken.

    Parameters
    ----------
    principal
        Who asks: user@host.
    action
        publish, yank, alias, lock, collect or sign.
    resource
        What it is about, relative to the registry: `models/minilm/aliases/prod`.
    registry, record
        URL of the registry, and what would be written; policies find both in their context.

    Raises
    ------
    NotAllowed
        One of them refuses, or does not work.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> policy = Mock(side_effect=NotAllowed("only ann moves prod"))
    >>> with patch(f"{__name__}._find_policies", return_value=[Mock(load=lambda: policy)]):
    ...     authorize("bob@host", "alias", "models/tiny/aliases/prod", "/registry", {"op": "set"})
    Traceback (most recent call last):
        ...
    daskinfer.errors.NotAllowed: only ann moves prod...
    """
    for entry in _find_policies():
        # Its own copy for each: a policy must not be able to change what is written, or what the next one sees.
        context = {"registry": registry, "record": parse_json(canonical_json(record))}
        try:
            policy: Policy = entry.load()
            answer = policy(principal, action, resource, context)
        except NotAllowed as error:
            raise NotAllowed(error.message, hint=error.hint or f"So says the policy {_name(entry)}.") from error
        except Exception as error:
            raise _broken(entry, f"{type(error).__name__}: {error}") from error
        if answer is not None:
            raise _broken(entry, f"it returned {answer!r}, and a policy returns None or raises NotAllowed")


@cache
def _find_policies() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def _broken(entry: EntryPoint, reason: str) -> NotAllowed:
    return NotAllowed(
        f"the policy {_name(entry)} does not work, so nothing is allowed: {reason}",
        hint="Correct or uninstall the package that it comes from.",
    )


def _name(entry: EntryPoint) -> str:
    package = "" if entry.dist is None else f" of {entry.dist.name}"
    return f"{entry.name!r} ({entry.value}){package}"
