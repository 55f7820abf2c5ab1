"""Who stands in the way of deleting something, for people."""

from __future__ import annotations

from daskinfer.ids import shorten
from daskinfer.spec.registry.collection import Holder, LockRow, PublishRow
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.retention import name_versions
from daskinfer.storage.registry.heartbeats import tell_age
from daskinfer.storage.registry.locks import LockHolder, heartbeat_url, list_holders
from daskinfer.storage.registry.publishing.blob_reuse import PURPOSE
from daskinfer.storage.registry.publishing.publications import Publication, identity_of, pulse_url


def list_locks(registry: Registry, snapshot: str | None = None) -> list[LockRow]:
    """Return all locks of a registry, or of one snapshot.

    Examples
    --------
    >>> from daskinfer.storage.registry.locks import take
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> lock = take(registry, registry.resolve("mini").snapshot, "demo")
    >>> [(row.job, row.versions) for row in list_locks(registry)]
    [('demo', ('mini v1',))]
    """
    folders = list_names(join_url(registry.url, "locks")) if snapshot is None else [shorten(snapshot, 64)]
    versions = name_versions(registry)
    return [
        LockRow(
            snapshot=f"sha256:{folder}",
            versions=tuple(versions.get(f"sha256:{folder}", ())),
            **describe_holder(registry, f"sha256:{folder}", holder).model_dump(),
        )
        for folder in folders
        for holder in list_holders(registry, f"sha256:{folder}")
    ]


def describe_holder(registry: Registry, snapshot: str, holder: LockHolder) -> Holder:
    """Return a lock as a row; a base's heartbeat is that of its publish.

    Examples
    --------
    >>> holder = LockHolder("demo", "run", "ann@host", "2026-01-02", 900, None)
    >>> describe_holder(Registry("registry"), "sha256:ab", holder).heartbeat_age is None
    True
    """
    url = heartbeat_url(registry, snapshot, holder.job)
    if holder.purpose == PURPOSE:
        url = pulse_url(registry, identity_of(holder.job))
    return Holder(
        job=holder.job,
        purpose=holder.purpose,
        by=holder.by,
        since=holder.since,
        ttl_seconds=holder.ttl_seconds,
        heartbeat_age=tell_age(url),
    )


def describe_publication(registry: Registry, publication: Publication) -> PublishRow:
    """Return a publish as a row.

    Examples
    --------
    >>> publication = Publication("12ab", "tiny", "ann@host", "2026-01-02", 900, "begun", None, ())
    >>> describe_publication(Registry("registry"), publication).publish
    'publish-12ab'
    """
    return PublishRow(
        publish=publication.job,
        name=publication.name,
        by=publication.by,
        since=publication.since,
        heartbeat_age=tell_age(pulse_url(registry, publication.identity)),
    )
