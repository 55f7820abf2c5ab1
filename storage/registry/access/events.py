"""Events: one small record for every decision about a registry, chained by digests, a chain for each principal.

Each event carries the digest of the one before it, so a chain in which something was changed, taken out or put in does not
fit together any more. A decision comes first and its event after it: a crash between the two leaves a record without an
event, and never an event without a record.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from daskinfer.errors import IntegrityError
from daskinfer.ids import parse_json, sha256_of
from daskinfer.spec.registry.trust import AuditEvent
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.slotlog import SlotLog, encode_record
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access.anchors import drop_anchor


class _Chain:
    """Where this process last saw the end of a chain."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known = -1


_CHAINS: defaultdict[str, _Chain] = defaultdict(_Chain)


def events_log(registry: str, principal: str) -> SlotLog:
    """Return the chain of a principal's events.

    Examples
    --------
    >>> events_log("/registry", "ann smith@host").url
    '/registry/audit/ann%20smith@host'
    """
    return SlotLog(join_url(registry, "audit", quote(principal, safe="@")))


def write_event(
    registry: str, principal: str, action: str, resource: str, url: str, digest: str, record: dict[str, Any]
) -> None:
    """Add an event to the end of its principal's chain, however many processes do so at once.

    Parameters
    ----------
    registry
        URL of the registry.
    principal, action, resource
        Who did what to what.
    url, digest, record
        Where the record of the decision is, the digest of its bytes, and what it says.

    Raises
    ------
    StorageError
        Where it cannot be written.

    Examples
    --------
    >>> log = events_log("registry", "ann@host")
    >>> write_event("registry", "ann@host", "alias", "models/tiny/aliases/prod", "record.json", "sha256:ab", {"op": "set"})
    >>> [(slot.sequence, slot.record["action"], slot.record["previous"]) for slot in log.read()]
    [(0, 'alias', None)]
    """
    log = events_log(registry, principal)
    chain = _CHAINS[log.url]
    with chain.lock:
        while True:
            chain.known, previous = _find_last(log, chain.known)
            event = AuditEvent(
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                by=principal,
                action=action,
                resource=resource,
                operation=record.get("op"),
                record=url.removeprefix(f"{registry}/"),
                digest=digest,
                client=_client(),
                previous=previous,
            )
            stored = encode_record({**event.model_dump(mode="json"), "checksum": event.checksum})
            if create(log.slot_url(chain.known + 1), stored):
                chain.known += 1
                drop_anchor(registry, quote(principal, safe="@"), chain.known, sha256_of(stored))
                return


def read_event(data: bytes) -> AuditEvent:
    """Return the event that these bytes are.

    Raises
    ------
    IntegrityError
        Where it was changed.

    Examples
    --------
    >>> from pathlib import Path
    >>> write_event("registry", "bob@host", "lock", "locks/ab/demo", "record.json", "sha256:ab", {})
    >>> data = Path(events_log("registry", "bob@host").slot_url(0)).read_bytes()
    >>> read_event(data).by
    'bob@host'
    >>> read_event(data.replace(b"lock", b"sign"))
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: it was changed: its checksum is another one
    """
    try:
        record = parse_json(data)
        del record["nonce"]
        checksum = record.pop("checksum")
        event = AuditEvent.model_validate(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # pydantic's error is a ValueError
        raise IntegrityError("it is no event") from error
    if event.checksum != checksum:
        raise IntegrityError("it was changed: its checksum is another one")
    return event


@cache
def _client() -> str:
    return version("daskinfer")


def _find_last(log: SlotLog, known: int) -> tuple[int, str | None]:
    """Return number and digest of a chain's last event, from one that was known to be there; -1 and None without any.

    By doubling and halving, because a chain has no gaps and listing it would take longer with every event.
    """
    low, digest = (-1, None) if known < 0 or (found := log.digest_at(known)) is None else (known, found)
    step = 1
    while (found := log.digest_at(low + step)) is not None:
        low, digest, step = low + step, found, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        if (found := log.digest_at(middle)) is None:
            high = middle
        else:
            low, digest = middle, found
    return low, digest
