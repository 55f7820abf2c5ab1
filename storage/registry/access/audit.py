"""The audit: the events of a registry by time, held against each other and against the records that they tell of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

from daskinfer.errors import IntegrityError
from daskinfer.ids import sha256_of
from daskinfer.spec.registry.trust import AuditEvent, AuditFinding, AuditTrail
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, list_names, read_record
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access.anchors import Anchor, drop_anchor, list_anchored, read_anchor
from daskinfer.storage.registry.access.events import read_event

_SLOT = re.compile(r"(\d{12})\.json")
# As names of checkpoints, aliases and jobs are.
_RECORD = re.compile(r"[a-z]+(/[A-Za-z0-9][A-Za-z0-9._-]{0,199})+\.json")
_READERS = 16


@dataclass(frozen=True, slots=True)
class _Stored:
    """An object as it was found."""

    path: str
    digest: str
    data: bytes
    """Of events only: a commit carries a whole manifest, and there may be many."""


def read_trail(registry: str) -> AuditTrail:
    """Return all events of a registry, and whatever does not fit.

    The newest event of a principal has none after it that vouches for it, and a whole chain may be written anew. A machine
    that wrote an event or audited before remembers the last one that it saw, and finds either; any other machine does
    not. Rights of the store prevent it.

    Parameters
    ----------
    registry
        URL of the registry.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> trail = read_trail(make_registry("registry", versions=1).url)
    >>> [event.action for event in trail.events if event.action != "lock"], trail.findings
    (['publish', 'publish', 'publish', 'alias'], ())
    """
    with ThreadPoolExecutor(_READERS, thread_name_prefix="audit") as pool:
        # Records before events: for each of these records the event was written before we look for it, unless its
        # writer is in between right now.
        paths = [path for folder in _list_logs(registry) for path in _list_slots(registry, folder)]
        records = {found.path: found for found in _read(pool, registry, paths)}
        # Before the events too: whoever writes one now remembers it after it is there.
        anchors = {name: read_anchor(registry, name) for name in list_anchored(registry)}
        chains = {
            name: list(_read(pool, registry, _list_slots(registry, f"audit/{name}")))
            for name in {*list_names(join_url(registry, "audit")), *anchors}
        }
        findings: list[AuditFinding] = []
        events: list[AuditEvent] = []
        for name, stored in chains.items():
            _check_gaps(f"audit/{name}", stored, findings)
            events += _check_chain(name, stored, findings)
            _check_anchor(registry, name, stored, anchors.get(name), findings)
        # What a forged event names may lie anywhere; only records are looked for.
        later = {event.record for event in events if _RECORD.fullmatch(event.record)} - records.keys()
        records |= {found.path: found for found in _read(pool, registry, later)}
    _check_records(events, records, findings)
    return AuditTrail(
        registry=registry,
        events=tuple(sorted(events, key=lambda event: event.at)),
        findings=tuple(sorted(findings, key=lambda finding: finding.where)),
        checked=len(events),
    )


def _list_logs(registry: str) -> Iterator[str]:
    """Yield the folders of all slot logs that decisions are appended to."""
    for name in list_names(join_url(registry, "models")):
        yield f"models/{name}/versions"
        for alias in list_names(join_url(registry, "models", name, "aliases")):
            yield f"models/{name}/aliases/{alias}"
    for kind in ("life", "publish", "sigs"):
        for name in list_names(join_url(registry, kind)):
            if "." not in name:  # beside publish logs lie their heartbeats and marks
                yield f"{kind}/{name}"


def _list_slots(registry: str, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in list_names(join_url(registry, folder)) if _SLOT.fullmatch(name)]


def _read(pool: ThreadPoolExecutor, registry: str, paths: Iterable[str]) -> Iterator[_Stored]:
    def read(path: str) -> _Stored | None:
        try:
            data = read_record(join_url(registry, path), LARGEST_MANIFEST)
        except FileNotFoundError:
            return None
        return _Stored(path, sha256_of(data), data if path.startswith("audit/") else b"")

    return filter(None, pool.map(read, paths))


def _check_gaps(folder: str, stored: list[_Stored], findings: list[AuditFinding]) -> None:
    present = {found.path for found in stored}
    last = max((int(path[-17:-5]) for path in present), default=-1)
    for number in range(last):
        path = f"{folder}/{number:012d}.json"
        if path not in present:
            findings.append(_broken(path, "the event is missing"))


def _check_chain(name: str, stored: list[_Stored], findings: list[AuditFinding]) -> Iterator[AuditEvent]:
    """Yield the events of a chain that can be read."""
    previous: _Stored | None = None
    for found in stored:
        try:
            event = read_event(found.data)
        except IntegrityError as error:
            findings.append(_broken(found.path, f"the event cannot be trusted: {error.message}"))
        else:
            if quote(event.by, safe="@") != name:
                findings.append(_broken(found.path, f"the event is one of {event.by}, in a chain of somebody else"))
            if event.previous != (None if previous is None else previous.digest):
                findings.append(_broken(found.path, "the event does not follow the one before it: one was changed"))
            yield event
        previous = found


def _check_anchor(
    registry: str, name: str, stored: list[_Stored], anchor: Anchor | None, findings: list[AuditFinding]
) -> None:
    """Hold a chain against the last event of it that this machine had seen, and remember the one that is last now."""
    digests = {found.path: found.digest for found in stored}
    if anchor is not None:
        path = f"audit/{name}/{anchor.number:012d}.json"
        what = "is gone" if path not in digests else "is another one" if digests[path] != anchor.digest else None
        if what:
            findings.append(
                _broken(
                    path,
                    f"the event {what} since this machine saw it: the chain was cut or written anew "
                    f"(where that was meant, delete {anchor.file})",
                )
            )
            return
    if stored and not any(finding.where.startswith(f"audit/{name}/") for finding in findings):
        last = stored[-1]
        drop_anchor(registry, name, int(last.path[-17:-5]), last.digest)


def _check_records(events: list[AuditEvent], records: dict[str, _Stored], findings: list[AuditFinding]) -> None:
    told: defaultdict[str, list[AuditEvent]] = defaultdict(list)
    for event in events:
        told[event.record].append(event)
    for path, about in told.items():
        found = records.get(path)
        if found is None:
            # A lock is deleted when it is released; nothing else ever is.
            if not path.startswith("locks/"):
                findings.append(_broken(path, f"the record is missing: {_describe(about[0])}"))
        elif found.digest not in {event.digest for event in about}:
            findings.append(_broken(path, f"the record was changed since {_describe(about[-1])}"))
        if len(about) > 1 and not path.startswith("locks/"):
            # Two copies of one record from another registry, at the same time, both say so.
            what = f"{len(about)} events tell of this record: {', '.join(map(_describe, about))}"
            findings.append(AuditFinding(severity="warning", where=path, what=what))
    silent: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(records.keys() - told.keys()):
        folder, _, name = path.rpartition("/")
        silent[folder].append(name)
    for folder, names in silent.items():
        few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        what = f"no event tells of {len(names)} record(s): {few}"
        findings.append(AuditFinding(severity="warning", where=folder, what=what))


def _describe(event: AuditEvent) -> str:
    return f"{event.action} by {event.by} at {event.at}"


def _broken(where: str, what: str) -> AuditFinding:
    return AuditFinding(severity="broken", where=where, what=what)
