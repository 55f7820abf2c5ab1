"""The one gate that every decision about a registry goes through: its rights are asked first, its record audited after.

A decision is a record appended to one of the registry's slot logs, or an object created there, that changes what a
reference means or what may be deleted. Reading, heartbeats and blobs that nothing refers to yet are none.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from daskinfer.errors import MissingEvent
from daskinfer.ids import parse_json, sha256_of
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.naming import name_principal
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.registry.access.events import write_event
from daskinfer.storage.registry.access.policies import authorize

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

    Examples
    --------
    >>> decision = Decision("registry", "publish", "models/tiny/versions")
    >>> append(decision, SlotLog("registry/models/tiny/versions"), {"op": "publish"}).sequence
    0
    """
    _ask(decision, record)
    slot = log.append(record, expect=expect)
    _tell(decision, log.slot_url(slot.sequence), slot.digest, record)
    return slot


def create_record(decision: Decision, url: str, data: bytes) -> bool:
    """Create an object, canonical JSON, that decides something; see `daskinfer.storage.objects.create_if_absent.create`.

    Raises
    ------
    NotAllowed
        A policy forbids it; nothing was written.

    Examples
    --------
    >>> decision = Decision("registry", "lock", "locks/ab/demo")
    >>> records = b'{"job":"demo"}', b'{"job":"other"}'
    >>> [create_record(decision, "registry/locks/ab/demo.json", data) for data in records]
    [True, False]
    """
    record = parse_json(data)
    _ask(decision, record)
    if not create(url, data):
        return False
    _tell(decision, url, sha256_of(data), record)
    return True


def _ask(decision: Decision, record: dict[str, Any]) -> None:
    authorize(name_principal(), decision.action, decision.resource, decision.registry, record)


def _tell(decision: Decision, url: str, digest: str, record: dict[str, Any]) -> None:
    try:
        write_event(decision.registry, name_principal(), decision.action, decision.resource, url, digest, record)
    except Exception as error:  # noqa: BLE001 - whatever it is
        # Not raised: whoever called would take the decision for failed, and undo or repeat it.
        missing = MissingEvent(
            f"{decision.action} of {decision.resource} is done, but its audit event is missing: "
            f"{getattr(error, 'message', error)}"
        )
        warnings.warn(missing, stacklevel=3)
