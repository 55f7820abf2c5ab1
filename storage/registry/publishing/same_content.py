"""Publishes of content that the registry has already: which snapshot they become, and which bytes are whose."""

from __future__ import annotations

from contextlib import suppress

from daskinfer.errors import CheckpointError, CorruptBlob, NotAllowed, SnapshotGone
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import delete, exists
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.blob_reuse import BlobReuse
from daskinfer.storage.tensors.blobs import read_group


def choose_snapshot(registry: Registry, made: Manifest, identity: str, bases: BlobReuse) -> Manifest:
    """Return the manifest to commit: the one that was made, or that of the snapshot which has this content already.

    A digest that was deleted never lives again, and what was damaged is not built upon: then its own id makes the
    manifest the only one of its digest.

    Examples
    --------
    >>> registry, bases = Registry("registry"), BlobReuse(Registry("registry"), "publish-12ab")
    >>> made = Manifest(model="mini", architecture="TestModel", dtype="float32", files=(), groups=())
    >>> choose_snapshot(registry, made, "12ab", bases) == made
    True
    >>> _ = registry.life_log(made.digest).append({"op": "sweep"})
    >>> choose_snapshot(registry, made, "34cd", BlobReuse(registry, "publish-34cd")).salt
    '34cd'
    """
    alone = made.model_copy(update={"salt": identity})
    if not bases.reserve(made.digest):
        return alone
    if not exists(registry.manifest_url(made.digest)):
        return made
    try:
        known = registry.manifest(made.digest)
        return known if is_intact(registry, known, made) else alone
    except (CorruptBlob, CheckpointError, SnapshotGone):
        return alone


def drop_unnamed(registry: Registry, manifest: Manifest, stored: list[str]) -> None:
    """Delete what a publish has stored and its manifest does not name: nobody else has ever seen it.

    Examples
    --------
    >>> from daskinfer.storage.objects.filesystem import replace_bytes
    >>> registry, stored = Registry("registry"), [join_url(Registry("registry").url, "blobs/ab/ab.12")]
    >>> replace_bytes(stored[0], b"unnamed")
    >>> empty = Manifest(model="mini", architecture="TestModel", dtype="float32", files=(), groups=())
    >>> drop_unnamed(registry, empty, stored)
    >>> stored
    []
    """
    named = {join_url(registry.url, blob) for blob in manifest.blobs}
    for url in [url for url in stored if url not in named]:
        with suppress(NotAllowed):  # a publisher need not have the right to delete
            delete(url)
        stored.remove(url)


def find_first(registry: Registry, snapshot: str) -> Manifest:
    """Return the manifest of a snapshot whose content another publish stored first.

    Raises
    ------
    CorruptBlob
        What is there is no manifest of that snapshot.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> find_first(registry, registry.resolve("mini").snapshot).model
    'mini'
    """
    try:
        return registry.manifest(snapshot)
    except CorruptBlob as error:
        raise CorruptBlob(
            f"{registry.manifest_url(snapshot)} is there with other bytes", hint="Delete that file, then publish again."
        ) from error


def is_intact(registry: Registry, manifest: Manifest, wanted: Manifest) -> bool:
    """Whether a version that claims to have the wanted content has it: publishing again corrects a damaged one.

    Raises
    ------
    CorruptBlob
        Where a file or a blob of its own is damaged.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> manifest = registry.manifest(registry.resolve("mini").snapshot)
    >>> is_intact(registry, manifest, manifest)
    True
    """
    for piece in manifest.files:
        registry.file(manifest, piece.path)
    for group in manifest.groups:
        if group.blob is not None:
            read_group(registry.url, group)
        # By reference: the files were read a moment ago, if they are the same ones.
        elif group != wanted.group(group.name):
            return False
    return True
