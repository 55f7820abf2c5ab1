"""Publishing a checkpoint: blobs first, then one record that makes it exist.

A publish is a slot log. Its second record, `commit`, carries the whole manifest and is the commit point: before it
nothing can be seen, after it anyone may finish the rest, and every step of the rest can be repeated. A publish that was
cut off before is given up by the second record `abort`, by itself or by garbage collection, and can then never commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from daskinfer.errors import (
    CheckpointError,
    Conflict,
    CorruptBlob,
    DaskinferError,
    NotAllowed,
    SnapshotGone,
    StorageError,
    YankedVersion,
)
from daskinfer.ids import make_nonce
from daskinfer.spec.snapshot import EntryPoint, LayerGroup, Manifest, PlainFile, Resolution
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, exists
from daskinfer.storage.objects.naming import check_alias, check_name, make_signature, name_principal
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.heartbeats import TTL_SECONDS, try_beat
from daskinfer.storage.registry.manifests import parse_manifest
from daskinfer.storage.registry.publishing.blob_reuse import BlobReuse
from daskinfer.storage.registry.publishing.publications import (
    abort,
    list_publications,
    name_job,
    publish_log,
    pulse_url,
)
from daskinfer.storage.registry.publishing.same_content import choose_snapshot, drop_unnamed, find_first, is_intact
from daskinfer.storage.registry.version_log import Version, fold
from daskinfer.storage.tensors.blobs import read_header

PLAIN_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".md", ".bpe", ".codes", ".tiktoken"})
"""What a configuration or tokenizer file may be; formats that can carry code are not among them."""
CODE_SUFFIX = ".py"
"""What a file of code may be, where the source says that its code is trusted."""
PLAIN_NAMES = frozenset({"LICENSE", "NOTICE"})
"""Plain files without a suffix."""

Watch = Callable[[str, int, int], None]
"""Called with what is being done (`comparing`, `storing`), and how many of how many bytes are done."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the publisher's own file holds a tensor's bytes."""

    url: str
    """Absolute path or URL."""
    begin: int
    """First byte in the file."""
    end: int
    """One past the last byte."""


@dataclass(frozen=True, slots=True)
class GroupSource:
    """One layer group, made when it is asked for so that only one is ever in memory."""

    name: str
    """Path of its unit: embeddings, encoder.layer.0 ..., classifier."""
    blob: Callable[[], bytes]
    """Returns a complete safetensors file; the same bytes at every call."""
    size: int = 0
    """About how many bytes that is; for progress."""
    origins: Mapping[str, Origin] | None = None
    """Where every tensor's bytes stay when the group is published by reference; None where they must be copied."""


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint on its way into a registry."""

    architecture: str
    """Class name from its configuration, e.g. BertModel."""
    dtype: str
    """Precision of the weights, e.g. float32."""
    files: Mapping[str, bytes]
    """Configuration and tokenizer files by relative path."""
    groups: Sequence[GroupSource]
    """Weights in model order."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Name of a tensor that is stored under another name -> that name."""
    entry: EntryPoint | None = None
    """The user's own code that builds the model."""
    trust_code: bool = False
    """Whether its files may be code."""
    parent: str | None = None
    """Digest of the snapshot that it was made from."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where it came from and what converted it."""
    confirm: Callable[[], Mapping[str, str]] | None = None
    """Makes sure that new content is right, before any of it is stored; returns more of the provenance."""


def publish(
    registry: Registry, name: str, source: CheckpointSource, alias: str | None = None, watch: Watch | None = None
) -> Resolution:
    """Publish a checkpoint as the next version of a model, and point an alias at it.

    Content that a live version of that model already has is not stored again: that version is returned. Where it was
    yanked, publishing it again is refused.

    Parameters
    ----------
    registry
        Where to.
    name
        Model name.
    source
        What; it is read twice where the model already has versions.
    alias
        Alias to move to the published version.
    watch
        Called after every layer group.

    Raises
    ------
    CheckpointError
        Where a name is not allowed, or the source holds something other than safetensors and plain files.
    YankedVersion
        Where a version with this content was yanked.
    StorageError
        Where the registry cannot be written.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_checkpoint
    >>> registry = Registry("registry")
    >>> [publish(registry, "mini", make_checkpoint(seed)).version for seed in (0, 1, 0)]
    [1, 2, 1]
    """
    check_name(name, "checkpoint")
    if alias is not None:
        check_alias(alias)
    _check_source(source)
    registry.initialise()
    finish_all(registry)
    watch = watch or (lambda doing, done, total: None)
    version = _find_equal(registry, name, source, watch)
    if version is None:
        if source.confirm is not None:
            source = replace(source, provenance={**source.provenance, **source.confirm()})
        version = _publish_new(registry, name, source, alias, watch)
    if alias is None:
        return registry.resolve(f"{name}@v{version.number}")
    if not _points_at(registry, name, alias, version):
        set_alias(registry, name, alias, f"v{version.number}", publish=version.publish)
    return registry.resolve(f"{name}@{alias}")


def finish_all(registry: Registry) -> list[Version]:
    """Finish every publish that was committed and then cut off; return the versions that they became.

    What this process has no right to finish is left to those who have.

    Examples
    --------
    >>> finish_all(Registry("registry"))
    []
    """
    finished = []
    for publication in list_publications(registry):
        if publication.state == "committed":
            with suppress(NotAllowed):
                finished.append(finish(registry, publication.identity, publication.records[1]))
    return finished


def _check_source(source: CheckpointSource) -> None:
    for path, data in source.files.items():
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not _is_allowed(pure, source.trust_code):
            raise CheckpointError(
                f"{path!r} cannot be published: it is not a configuration or tokenizer file",
                hint=f"Files may end in {', '.join(sorted(PLAIN_SUFFIXES))}; weights must be safetensors.",
            )
        if not data:
            raise CheckpointError(f"{path!r} cannot be published: it is empty", hint="Remove it, or correct it.")
    names = [group.name for group in source.groups]
    if not names or len(set(names)) < len(names):
        raise CheckpointError(f"a checkpoint needs layer groups with names of their own, not {names}")


def _is_allowed(path: PurePosixPath, trust_code: bool) -> bool:
    is_code = path.suffix == CODE_SUFFIX
    return trust_code if is_code else path.suffix in PLAIN_SUFFIXES or path.name in PLAIN_NAMES


def _describe(
    name: str, source: CheckpointSource, store: Callable[[str, bytes], str], watch: Callable[[int, int], None]
) -> Manifest:
    """Return the manifest of a source whose every copied blob goes through `store(sha256, bytes) -> blob path`."""
    files = []
    for path, data in sorted(source.files.items()):
        digest = hashlib.sha256(data).hexdigest()
        files.append(PlainFile(path=path, size=len(data), sha256=digest, blob=store(digest, data)))
    groups: list[LayerGroup] = []
    total = sum(group.size for group in source.groups)
    for group in source.groups:
        data = group.blob()
        digest = hashlib.sha256(data).hexdigest()
        entries = read_header(data, group.name)
        if group.origins is None:
            blob = store(digest, data)
        else:
            blob = None
            places = [group.origins[entry.name] for entry in entries]
            entries = tuple(
                entry.model_copy(update={"file": place.url, "begin": place.begin, "end": place.end})
                for entry, place in zip(entries, places, strict=True)
            )
        groups.append(LayerGroup(name=group.name, size=len(data), sha256=digest, blob=blob, tensors=entries))
        watch(sum(each.size for each in source.groups[: len(groups)]), total)
        del data  # or two groups are in memory while the next is made
    return Manifest(
        model=name,
        architecture=source.architecture,
        dtype=source.dtype,
        parent=source.parent,
        files=tuple(files),
        groups=tuple(groups),
        tied=dict(source.tied),
        entry=source.entry,
        provenance=dict(source.provenance),
    )


def _find_equal(registry: Registry, name: str, source: CheckpointSource, watch: Watch) -> Version | None:
    """Return the latest live version with the source's content, all of it still intact; a yanked one if need be."""
    versions = registry.versions(name)
    if not versions:
        return None
    wanted = _describe(name, source, lambda digest, data: f"blobs/{digest}", partial(watch, "comparing"))
    for version in sorted(versions, key=lambda each: (each.yanked is None, each.number), reverse=True):
        if registry.life(version.snapshot) != "live":
            continue
        try:
            manifest = registry.manifest(version.snapshot)
            if manifest.content == wanted.content and is_intact(registry, manifest, wanted):
                return version
        except (CorruptBlob, CheckpointError, SnapshotGone):
            continue
    return None


def _publish_new(registry: Registry, name: str, source: CheckpointSource, alias: str | None, watch: Watch) -> Version:
    identity = make_nonce(8)
    log, pulse = publish_log(registry, identity), pulse_url(registry, identity)
    decision = Decision(registry.url, "publish", f"publish/{identity}")
    begin = {"op": "begin", "name": name, "ttl_seconds": TTL_SECONDS, **make_signature()}
    authorised_writes.append(decision, log, begin, expect=0)
    bases = BlobReuse(registry, name_job(identity))
    stored: list[str] = []

    def store(digest: str, data: bytes) -> str:
        try_beat(pulse)
        if (known := bases.find(digest, len(data))) is not None:
            return known
        blob = f"blobs/{digest[:2]}/{digest}.{identity}"
        stored.append(join_url(registry.url, blob))
        if not create(stored[-1], data):
            raise StorageError(f"{stored[-1]} is already there with other bytes", hint="Publish again.")
        return blob

    def tell(done: int, total: int) -> None:
        try_beat(pulse)
        watch("storing", done, total)

    try:
        bases.lock(name, source.parent)
        manifest = choose_snapshot(registry, _describe(name, source, store, tell), identity, bases)
        drop_unnamed(registry, manifest, stored)
        record: dict[str, Any] = {"op": "commit", "name": name, "manifest": _dump(manifest), **make_signature()}
        if alias is not None:
            head = registry.alias_log(name, alias).head()
            record |= {"alias": alias, "alias_sequence": 0 if head is None else head.sequence + 1}
        authorised_writes.append(decision, log, record, expect=1)
    except BaseException as error:
        # Whether a commit got through that came back with an error, only the log can tell. What cannot be cleaned up
        # now, because the store is away, is left to garbage collection.
        with suppress(DaskinferError, OSError):
            if abort(registry, identity, "publish"):
                for url in [*stored, pulse]:
                    delete(url)
                bases.release()
        if isinstance(error, Conflict):
            raise StorageError(
                f"publish {identity} of {name} was silent for so long that garbage collection gave it up",
                hint="Publish again.",
            ) from error
        raise
    try:
        return finish(registry, identity, record)
    finally:
        # Whatever the alias came to: once the manifest is there, it needs no base.
        if exists(registry.manifest_url(manifest.digest)):
            bases.release()


def _dump(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"checksum"})


def finish(registry: Registry, identity: str, commit: dict[str, Any]) -> Version:
    """Do what follows a commit; all of it may have been done, or be under way elsewhere.

    A commit that copies a snapshot from another registry brings the records of the publishes that made it there.

    Examples
    --------
    >>> made = Manifest(model="mini", architecture="TestModel", dtype="float32", files=(), groups=())
    >>> version = finish(Registry("registry"), "12ab", {"op": "commit", "manifest": made.model_dump(mode="json")})
    >>> version.number, version.snapshot == made.digest
    (1, True)
    """
    manifest = parse_manifest(commit["manifest"], publish_log(registry, identity).url)
    snapshot, name = manifest.digest, commit.get("name", manifest.model)
    if not create(registry.manifest_url(snapshot), manifest.encode()):
        # Another publish of the same content was first: its manifest tells where the bytes are.
        first = find_first(registry, snapshot)
        own_blobs = [blob for blob in manifest.blobs if blob.endswith(f".{identity}")]
        drop_unnamed(registry, first, [join_url(registry.url, blob) for blob in own_blobs])
    own = {"snapshot": snapshot, "publish": identity, **make_signature()}
    for origin in commit.get("versions", [own]):
        version = append_version(registry, name, origin)
    refusal = None
    # An alias moves with the rights of whoever asked for it, never with those of a stranger who finishes their publish.
    if "alias" in commit and commit["by"] == name_principal():
        try:
            set_alias(registry, name, commit["alias"], snapshot, expect=commit["alias_sequence"], publish=identity)
        except (Conflict, SnapshotGone, YankedVersion):
            pass  # whoever moved the alias since the commit meant it: a late finisher must not move it back
        except NotAllowed as error:
            refusal = error
    create(join_url(registry.url, "publish", f"{identity}.done"), b"{}")
    # Heartbeats are deleted by whoever may: a publisher need not have the right to delete.
    with suppress(NotAllowed):
        delete(pulse_url(registry, identity))
    if refusal is not None:
        raise NotAllowed(
            f"{name} v{version.number} was published, but {commit['alias']} was not moved: {refusal.message}",
            hint=refusal.hint,
        )
    return version


def append_version(registry: Registry, name: str, origin: dict[str, Any]) -> Version:
    """Append the record of a publish to a model's versions, unless its snapshot is one of them.

    A snapshot with two versions could be yanked under one number, and be the latest under the other.

    Examples
    --------
    >>> registry, origin = Registry("registry"), {"snapshot": "sha256:ab", "publish": "12ab", **make_signature()}
    >>> [append_version(registry, "mini", origin).number for _ in range(2)]
    [1, 1]
    """
    log = registry.versions_log(name)
    decision = Decision(registry.url, "publish", f"models/{name}/versions")
    while True:
        slots = log.read()
        versions = fold(slot.record for slot in slots)
        known = next((version for version in versions if version.snapshot == origin["snapshot"]), None)
        if known is not None:
            return known
        with suppress(Conflict):
            authorised_writes.append(decision, log, {"op": "publish", **origin}, expect=len(slots))


def _points_at(registry: Registry, name: str, alias: str, version: Version) -> bool:
    head = registry.alias_log(name, alias).head()
    return head is not None and head.record["snapshot"] == version.snapshot
