"""Deleting what was condemned: marks around it, and nothing that anybody needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import delete, find_files, list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import marks
from daskinfer.storage.registry.collection.references import Manifests
from daskinfer.storage.registry.publishing.publications import Publication, list_publications, publish_log

# A blob, or one that was half written on a local disk: <sha256>.<publish>, .<sha256>.<publish>.<nonce>.tmp
_BLOB = re.compile(r"(blobs/[0-9a-f]{2}/)(\.?)([0-9a-f]{64}\.([0-9a-f]+))(?:\.[0-9a-f]+\.tmp)?")

Blobs = dict[str, int]
"""Blobs, relative to the registry root, and their lengths in bytes."""


def list_blobs(registry: Registry) -> Blobs:
    """Return every blob that is stored, half-written ones too.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> len(list_blobs(make_registry("registry", versions=1)))
    5
    """
    return {f"blobs/{name}": size for name, size in find_files(join_url(registry.url, "blobs")).items()}


def find_superfluous(
    manifests: Manifests,
    blobs: Blobs,
    snapshots: Sequence[str],
    publications: Sequence[Publication],
    needed: Collection[str],
) -> dict[str, Blobs]:
    """Return which of the stored blobs go with each snapshot and with each publish that was given up; each goes once.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> blobs, snapshot = list_blobs(registry), registry.resolve("mini").snapshot
    >>> found = find_superfluous(Manifests(registry), blobs, [snapshot], (), needed=())
    >>> found == {snapshot: blobs}
    True
    """
    stored: dict[str, list[str]] = {}
    halves: dict[str, list[str]] = {}
    for blob in blobs:
        if match := _BLOB.fullmatch(blob):
            folder, half, name, identity = match.groups()
            stored.setdefault(identity, []).append(blob)
            if half:  # of a copy: the publish that its name tells was elsewhere
                halves.setdefault(folder + name, []).append(blob)

    def name_all(manifest: Manifest | None) -> list[str]:
        named = () if manifest is None else manifest.blobs
        return [*named, *(half for blob in named for half in halves.get(blob, ()))]

    named = {snapshot: name_all(manifests.read(snapshot)) for snapshot in snapshots}
    for publication in publications:
        named[publication.identity] = [*stored.get(publication.identity, ()), *name_all(publication.manifest)]
    taken = set(needed)
    found: dict[str, Blobs] = {}
    for owner, names in named.items():
        found[owner] = {blob: blobs[blob] for blob in names if blob in blobs and blob not in taken}
        taken.update(found[owner])
    return found


def delete_all(
    registry: Registry,
    manifests: Manifests,
    blobs: Blobs,
    snapshots: Sequence[str],
    publications: Sequence[Publication],
) -> dict[str, Blobs]:
    """Delete swept snapshots and what aborted publishes stored; return the blobs, as `find_superfluous` does.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> snapshot = registry.resolve("mini").snapshot
    >>> _ = registry.life_log(snapshot).append({"op": "sweep"})
    >>> count(delete_all(registry, Manifests(registry), list_blobs(registry), [snapshot], ()))[0], list_blobs(registry)
    (5, {})
    """
    collector = marks.name_collector()
    logs = [registry.life_log(snapshot) for snapshot in snapshots]
    logs += [publish_log(registry, publication.identity) for publication in publications]
    for log in logs:
        marks.begin(registry.url, log, collector)
    found = find_superfluous(manifests, blobs, snapshots, publications, manifests.find_needed() if logs else ())
    for owner in found.values():
        for blob in owner:
            delete(join_url(registry.url, blob))
    for snapshot in snapshots:
        # After its blobs, or nobody would know of them any more.
        delete(registry.manifest_url(snapshot))
    # Not where something failed: a deletion whose answer was lost may still come through.
    for log in logs:
        marks.end(registry.url, log, collector)
    return found


def remove_locks(registry: Registry, jobs: Collection[str], swept: Collection[str]) -> None:
    """Remove what publishes that are over still lock, and every lock on a deleted snapshot.

    Examples
    --------
    >>> from daskinfer.storage.registry.locks import list_holders, reserve
    >>> registry, snapshot = Registry("registry"), "sha256:" + "ab" * 32
    >>> _ = [reserve(registry, snapshot, job, purpose="run") for job in ("demo", "other")]
    >>> remove_locks(registry, jobs=["demo"], swept=[])
    >>> [holder.job for holder in list_holders(registry, snapshot)]
    ['other']
    """
    root = join_url(registry.url, "locks")
    for folder in list_names(root) if jobs or swept else ():
        # Whoever locks a deleted snapshot finds out and lets go, unless it dies before.
        useless = f"sha256:{folder}" in swept
        for name in list_names(join_url(root, folder)) if useless or jobs else ():
            if useless or name.rpartition(".")[0] in jobs:
                delete(join_url(root, folder, name))


def remove_pulses(registry: Registry) -> None:
    """Remove the heartbeats of publishes that are over: a publisher may die before it does.

    Examples
    --------
    >>> from daskinfer.storage.registry.heartbeats import beat, read_beat
    >>> from daskinfer.storage.registry.publishing.publications import pulse_url
    >>> registry = Registry("registry")
    >>> beat(pulse_url(registry, "12ab"))
    >>> remove_pulses(registry)
    >>> read_beat(pulse_url(registry, "12ab")) is None
    True
    """
    names = [name for name in list_names(join_url(registry.url, "publish")) if name.endswith(".hb")]
    # Asked for second: a publish that began since is among them.
    begun = {each.identity for each in list_publications(registry) if each.state == "begun"} if names else set()
    for name in names:
        if name.removesuffix(".hb") not in begun:
            delete(join_url(registry.url, "publish", name))


def count(freed: Mapping[str, Blobs]) -> tuple[int, int]:
    """Return how many blobs there are and their length in bytes.

    Examples
    --------
    >>> count({"sha256:ab": {"blobs/1": 10, "blobs/2": 5}, "sha256:cd": {}})
    (2, 15)
    """
    return sum(map(len, freed.values())), sum(sum(blobs.values()) for blobs in freed.values())
