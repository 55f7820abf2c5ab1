"""Marks around deletions: `collecting` before a collector looks for references, `collected` after its last deletion.

They are records of the log that condemned the blobs: a snapshot's life, or a publish that was given up. Between the two,
the collector may delete any of these blobs at any moment, by a list of references that may be old. Whoever brings in
blobs under names that they had elsewhere writes down what is coming first, then looks at these marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from daskinfer.ids import make_nonce
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision

Records = Iterable[Mapping[str, Any]]


def find_open(records: Records) -> dict[str, Mapping[str, Any]]:
    """Return the `collecting` records that no `collected` record closes, by collector.

    Examples
    --------
    >>> records = [{"op": "sweep"}, {"op": "collecting", "by": "gc-1"}, {"op": "collecting", "by": "gc-2"}]
    >>> list(find_open([*records, {"op": "collected", "by": "gc-1"}]))
    ['gc-2']
    """
    begun: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record["op"] == "collecting":
            begun[record["by"]] = record
        elif record["op"] == "collected":
            begun.pop(record["by"], None)
    return begun


def is_closed(records: Records) -> bool:
    """Whether a collector has come to an end with these blobs.

    Examples
    --------
    >>> is_closed([{"op": "sweep"}, {"op": "collecting", "by": "gc-1"}])
    False
    """
    return any(record["op"] == "collected" for record in records)


def name_collector() -> str:
    """Return a name for this turn of garbage collection, which nobody else has.

    Examples
    --------
    >>> name_collector()[:3], len(name_collector())
    ('gc-', 11)
    """
    return f"gc-{make_nonce(8)}"


def begin(registry_url: str, log: SlotLog, collector: str) -> None:
    """Record that a collector is about to look for references.

    Examples
    --------
    >>> log = SlotLog("registry/life/ab")
    >>> begin("registry", log, "gc-1")
    >>> list(find_open(slot.record for slot in log.read()))
    ['gc-1']
    """
    signature = make_signature()
    record = {"op": "collecting", "by": collector, "who": signature["by"], "at": signature["at"]}
    authorised_writes.append(_decision(registry_url, log), log, record)


def end(registry_url: str, log: SlotLog, collector: str) -> None:
    """Record that a collector deletes nothing more.

    Examples
    --------
    >>> log = SlotLog("registry/life/ab")
    >>> begin("registry", log, "gc-1")
    >>> end("registry", log, "gc-1")
    >>> [slot.record["op"] for slot in log.read()]
    ['collecting', 'collected']
    """
    authorised_writes.append(_decision(registry_url, log), log, {"op": "collected", "by": collector})


def _decision(registry_url: str, log: SlotLog) -> Decision:
    return Decision(registry_url, "collect", log.url.removeprefix(registry_url).strip("/"))
