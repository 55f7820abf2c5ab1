"""Publishes that are not done: under way, cut off, or given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from daskinfer.errors import Conflict
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Action, Decision
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.heartbeats import TTL_SECONDS
from daskinfer.storage.registry.manifests import parse_manifest

State = Literal["begun", "committed", "aborted"]

_STATES: Mapping[str, State] = {"begin": "begun", "commit": "committed", "abort": "aborted"}


@dataclass(frozen=True, slots=True)
class Publication:
    """A publish that nobody has marked as done."""

    identity: str
    """Its id: the suffix of the blobs that it stores."""
    name: str
    """Model name."""
    by: str
    """Who began it: user@host."""
    since: str
    """When; ISO 8601, UTC."""
    ttl_seconds: int
    """How long its heartbeat may stay unchanged."""
    state: State
    """How far it came."""
    manifest: Manifest | None
    """What it makes, where that is known: it is while it copies a snapshot, and once it is committed."""
    records: tuple[dict[str, Any], ...]
    """Its whole log."""

    @property
    def job(self) -> str:
        """The name that it holds locks by."""
        return name_job(self.identity)


def list_publications(registry: Registry) -> list[Publication]:
    """Return every publish that is not done, whether somebody works at it or not.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> begin = {"op": "begin", "name": "tiny", "by": "ann@host", "at": "2026-01-02"}
    >>> _ = publish_log(registry, "12ab").append(begin)
    >>> [(each.job, each.state) for each in list_publications(registry)]
    [('publish-12ab', 'begun')]
    """
    names = list_names(join_url(registry.url, "publish"))
    done = {name.removesuffix(".done") for name in names if name.endswith(".done")}
    found = (read_publication(registry, name) for name in names if "." not in name and name not in done)
    return [publication for publication in found if publication is not None]


def read_publication(registry: Registry, identity: str) -> Publication | None:
    """Return one publish, done or not; None where there is no such.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> begin = {"op": "begin", "name": "tiny", "by": "ann@host", "at": "2026-01-02"}
    >>> _ = publish_log(registry, "12ab").append(begin)
    >>> read_publication(registry, "12ab").name, read_publication(registry, "34cd")
    ('tiny', None)
    """
    records = tuple(slot.record for slot in publish_log(registry, identity).read())
    if not records:
        return None
    begin, last = records[0], records[min(1, len(records) - 1)]
    manifest = last.get("manifest") or begin.get("manifest")
    return Publication(
        identity=identity,
        name=begin["name"],
        by=begin["by"],
        since=begin["at"],
        ttl_seconds=begin.get("ttl_seconds", TTL_SECONDS),
        state=_STATES[last["op"]],
        manifest=None if manifest is None else parse_manifest(manifest, publish_log(registry, identity).url),
        records=records,
    )


def abort(registry: Registry, identity: str, action: Action) -> bool:
    """Give a publish up so that it can never be committed; False where it is committed already.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> begin = {"op": "begin", "name": "tiny", "by": "ann@host", "at": "2026-01-02"}
    >>> _ = publish_log(registry, "12ab").append(begin)
    >>> abort(registry, "12ab", "collect"), read_publication(registry, "12ab").state
    (True, 'aborted')
    """
    decision = Decision(registry.url, action, f"publish/{identity}")
    try:
        authorised_writes.append(
            decision, publish_log(registry, identity), {"op": "abort", **make_signature()}, expect=1
        )
    except Conflict:
        found = read_publication(registry, identity)
        return found is not None and found.state == "aborted"
    return True


def name_job(identity: str) -> str:
    """Return the name that a publish holds locks by.

    Examples
    --------
    >>> name_job("12ab")
    'publish-12ab'
    """
    return f"publish-{identity}"


def identity_of(job: str) -> str:
    """Return the id of the publish that holds locks by this name.

    Examples
    --------
    >>> identity_of("publish-12ab")
    '12ab'
    """
    return job.removeprefix("publish-")


def publish_log(registry: Registry, identity: str) -> SlotLog:
    """Return the log of a publish.

    Examples
    --------
    >>> publish_log(Registry("/registry"), "12ab").url
    '/registry/publish/12ab'
    """
    return SlotLog(join_url(registry.url, "publish", identity))


def pulse_url(registry: Registry, identity: str) -> str:
    """Return where a publish's heartbeat is.

    Examples
    --------
    >>> pulse_url(Registry("/registry"), "12ab")
    '/registry/publish/12ab.hb'
    """
    return join_url(registry.url, "publish", f"{identity}.hb")
