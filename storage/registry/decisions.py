"""The one gate that every decision about a registry goes through: its rights are asked first, its record audited after.

A decision is a record appended to one of the registry's slot logs, or an object created there, that changes what a
reference means or what may be deleted. Reading, heartbeats and blobs that nothing refers to yet are none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from daskinfer.storage.exclusive import create
from daskinfer.storage.naming import name_principal
from daskinfer.storage.registry.policies import authorize
from daskinfer.storage.slotlog import Slot, SlotLog

Action = Literal["publish", "yank", "alias", "lock", "collect", "sign"]
"""What a role may be allowed to do; each belongs to one storage prefix."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody is about to do to a registry."""

    registry: str
    """URL of the registry."""
    action: Action
    """What kind of thing."""
    resource: str
    """What to, relative to the registry: `models/minilm/aliases/prod`."""


def append(decision: Decision, log: SlotLog, record: dict[str, Any], expect: int | None = None) -> Slot:
    """Append a record that decides something; see `SlotLog.append`.

    Raises
    ------
    NotAllowed
        A policy forbids it; nothing was written.
    """
    _ask(decision, record)
    return log.append(record, expect=expect)


def create_record(decision: Decision, url: str, data: bytes) -> bool:
    """Create an object, canonical JSON, that decides something; see `daskinfer.storage.exclusive.create`.

    Raises
    ------
    NotAllowed
        A policy forbids it; nothing was written.
    """
    _ask(decision, json.loads(data))
    return create(url, data)


def _ask(decision: Decision, record: Mapping[str, Any]) -> None:
    authorize(name_principal(), decision.action, decision.resource, decision.registry, record)
