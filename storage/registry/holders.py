"""Who stands in the way of deleting something, for people."""

from __future__ import annotations

from daskinfer.ids import shorten
from daskinfer.spec.collection import Holder, LockRow, PublishRow
from daskinfer.storage.filesystem import list_names
from daskinfer.storage.registry.bases import PURPOSE
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.heartbeats import tell_age
from daskinfer.storage.registry.locks import LockHolder, heartbeat_url, list_holders
from daskinfer.storage.registry.publications import Publication, identity_of, pulse_url
from daskinfer.storage.registry.retention import name_versions
from daskinfer.storage.urls import join_url


def list_locks(registry: Registry, snapshot: str | None = None) -> list[LockRow]:
    """Return all locks of a registry, or of one snapshot."""
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
    """Return a lock as a row; a base's heartbeat is that of its publish."""
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
    """Return a publish as a row."""
    return PublishRow(
        publish=publication.job,
        name=publication.name,
        by=publication.by,
        since=publication.since,
        heartbeat_age=tell_age(pulse_url(registry, publication.identity)),
    )
