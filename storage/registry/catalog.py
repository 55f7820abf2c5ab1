"""The registry: immutable checkpoint versions, movable aliases with history, and what became of each snapshot.

::

    format.json                              what this folder is
    blobs/<aa>/<sha256>.<pub8>               immutable bytes; the suffix names the publish that stored them
    manifests/<sha256>.json                  canonical JSON; the digest of the content that it lists is the snapshot's name
    publish/<pub8>/                          slot log: begin, then commit or abort
    publish/<pub8>.hb  <pub8>.done           its heartbeat; nothing is left to do
    models/<name>/versions/                  slot log: publish, yank, unyank; the first publish is v1
    models/<name>/aliases/<alias>/           slot log; the last record is where the alias points
    life/<sha256>/                           slot log: condemn, then live or sweep; see collection.py
    locks/<sha256>/<job>.json  <job>.hb      who uses a snapshot, and their heartbeat
    sigs/<sha256>/                           slot log: signatures of the snapshot
    audit/<user@host>/                       slot log: an event for every decision, each with the digest of the last
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from daskinfer.errors import CheckpointError, CorruptBlob, SnapshotGone
from daskinfer.ids import canonical_json, parse_json, sha256_of, shorten
from daskinfer.spec.registry.listing import AliasMove
from daskinfer.spec.snapshot import Manifest, Resolution
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import (
    LARGEST_MANIFEST,
    exists,
    list_names,
    read_bytes,
    read_record,
    size_of,
)
from daskinfer.storage.objects.naming import check_alias, check_name, suggest
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.store_check import confirm_exclusive
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url
from daskinfer.storage.registry.access.anchors import forget_anchors
from daskinfer.storage.registry.manifests import name_manifest, parse_manifest
from daskinfer.storage.registry.version_log import Version, describe_move, find_version, fold, refuse_yanked

FORMAT = {"daskinfer_registry": 1, "digest": "sha256"}

_VERSION = re.compile(r"v(\d+)")
_DIGEST = re.compile(r"sha256:([0-9a-f]{8,64})")
_LIVES = {"condemn": "condemned", "live": "live", "sweep": "swept", "collecting": "swept", "collected": "swept"}


class Registry:
    """A registry on any store that daskinfer can create objects exclusively on.

    Parameters
    ----------
    url
        Its root. A missing or empty one is an empty registry; nothing is written before the first publish.

    Raises
    ------
    CheckpointError
        Where the folder holds something else.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> registry.names(), registry.resolve("mini@prod").version
    (['mini'], 2)
    """

    def __init__(self, url: str) -> None:
        self.url = absolute_url(url)
        if names := list_names(self.url):
            self._check_format(names)

    def initialise(self) -> None:
        """Write the format record, unless one is there.

        Raises
        ------
        StorageError
            Where the store turns out to be unsafe.
        """
        url = join_url(self.url, "format.json")
        if not list_names(self.url):
            forget_anchors(self.url)
        if exists(url) or not create(url, canonical_json(FORMAT)):
            self._check_format(["format.json"])
        elif not is_local(url):
            confirm_exclusive(url)

    def resolve(self, reference: str, *, yanked: bool = False) -> Resolution:
        """Return the snapshot that a reference means now.

        Parameters
        ----------
        reference
            `NAME@alias`, `NAME@v3`, `NAME@sha256:...` (a unique beginning of 8 digits or more), or `NAME` for the
            latest version.
        yanked
            Whether a version, or an alias that points to it, may be one that was yanked: to look at it, not to use it.

        Raises
        ------
        CheckpointError
            Where there is no such name, alias, version or snapshot.
        YankedVersion
            Where the version was yanked, and is not named by its full digest.
        """
        name, _, target = reference.partition("@")
        versions = self._get_versions(name)
        if not target:
            if "@" in reference:
                raise CheckpointError(f"{reference!r} names no version or alias", hint=f"Write {name}, or {name}@v1.")
            version = self._find_latest(name, versions)
            return Resolution(reference=reference, name=name, snapshot=version.snapshot, version=version.number)
        if _VERSION.fullmatch(target) or target.startswith("sha256:"):
            version = self._pick_version(name, target, versions)
            if not yanked and target != version.snapshot:
                refuse_yanked(name, version)
            return Resolution(reference=reference, name=name, snapshot=version.snapshot, version=version.number)
        head = self._alias_head(name, target, versions)
        if head is None or head.snapshot is None:
            known = [*self.aliases(name), *(f"v{each.number}" for each in versions)]
            raise CheckpointError(f"{name} has no alias {target!r}", hint=suggest(target, known))
        pointed = find_version(versions, head.snapshot)
        if pointed is not None and not yanked:
            refuse_yanked(name, pointed)
        return Resolution(
            reference=reference,
            name=name,
            snapshot=head.snapshot,
            version=head.version,
            alias=target,
            sequence=head.sequence,
        )

    def manifest(self, snapshot: str) -> Manifest:
        """Return a snapshot's manifest, its digest checked.

        Raises
        ------
        CorruptBlob
            Where its bytes do not have the snapshot's digest.
        SnapshotGone
            Where garbage collection took it.
        CheckpointError
            Where there never was one.
        """
        url = self.manifest_url(snapshot)
        try:
            data = read_record(url, LARGEST_MANIFEST)
        except FileNotFoundError:
            if self.life(snapshot) == "swept":
                raise SnapshotGone(
                    f"snapshot {shorten(snapshot)} was deleted from registry {self.url}", hint="Publish it again."
                ) from None
            raise CheckpointError(
                f"registry {self.url} has no snapshot {snapshot}", hint="Look at: daskinfer checkpoint list"
            ) from None
        try:
            manifest = parse_manifest(data, url)
            actual = manifest.digest
        except CorruptBlob:
            actual = sha256_of(data)
            if actual == snapshot:  # these are the bytes that somebody wrote: what is wrong is in them
                raise
        if actual != snapshot:
            raise CorruptBlob(
                f"manifest {url} has digest {actual}, its name says {snapshot}",
                hint="The registry was damaged or edited by hand: restore the file, or publish the checkpoint again.",
            )
        return manifest

    def file(self, manifest: Manifest, path: str) -> bytes:
        """Return a plain file of a snapshot, verified.

        Raises
        ------
        CheckpointError
            Where the snapshot has no such file.
        CorruptBlob
            Where its bytes are gone or differ from the manifest.
        SnapshotGone
            Where they are gone because garbage collection took the snapshot.
        """
        with explain_loss(self, manifest.digest):
            return self._read_file(manifest, path)

    def files(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the plain files of a snapshot by their paths, verified; raises as `file` does."""
        return {piece.path: self.file(manifest, piece.path) for piece in manifest.files}

    def _read_file(self, manifest: Manifest, path: str) -> bytes:
        piece = next((each for each in manifest.files if each.path == path), None)
        if piece is None:
            raise CheckpointError(
                f"{manifest.model} ({shorten(manifest.digest)}) has no file {path!r}",
                hint=suggest(path, [each.path for each in manifest.files]),
            )
        url = join_url(self.url, piece.blob)
        hint = "The registry was damaged: restore the file, or publish the checkpoint again."
        try:
            if is_local(url) and (size := size_of(url)) != piece.size:
                raise CorruptBlob(
                    f"{path} of {manifest.model} is damaged: {url} has {size} bytes, its manifest says {piece.size}",
                    hint=hint,
                )
            data = read_bytes(url)
        except FileNotFoundError as error:
            raise CorruptBlob(f"{path} of {manifest.model} is gone: {url}", hint=hint) from error
        actual = shorten(sha256_of(data), 64)
        if actual != piece.sha256:
            raise CorruptBlob(
                f"{path} of {manifest.model} is damaged: {url} has sha256 {actual}, its manifest says {piece.sha256}",
                hint=hint,
            )
        return data

    def names(self) -> list[str]:
        """Return the names of all published models."""
        return list_names(join_url(self.url, "models"))

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a model, yanked ones too, oldest first; none for an unknown name."""
        return fold(slot.record for slot in self.versions_log(name).read())

    def find_version(self, name: str, target: str) -> Version:
        """Return the version that `v3` or `sha256:...` names, a yanked one too.

        Raises
        ------
        CheckpointError
            Where there is none.
        """
        return self._pick_version(name, target, self._get_versions(name))

    def aliases(self, name: str) -> dict[str, AliasMove]:
        """Return where each alias of a model points."""
        versions = self.versions(name)
        heads = {alias: self._alias_head(name, alias, versions) for alias in self.alias_names(name)}
        return {alias: head for alias, head in heads.items() if head is not None and head.snapshot is not None}

    def alias_names(self, name: str) -> list[str]:
        """Return the names of the aliases that a model has or had."""
        return list_names(self._aliases_url(name))

    def alias_history(self, name: str, alias: str) -> list[AliasMove]:
        """Return every move of an alias, oldest first; none for an unknown alias."""
        versions = self.versions(name)
        return [describe_move(alias, slot, versions) for slot in self.alias_log(name, alias).read()]

    def life(self, snapshot: str) -> str:
        """Return `live`, `condemned` (garbage collection is deciding) or `swept` (deleted, or about to be)."""
        head = self.life_log(snapshot).head()
        return "live" if head is None else _LIVES[head.record["op"]]

    def versions_log(self, name: str) -> SlotLog:
        """Return the log of a model's versions."""
        return SlotLog(join_url(self.url, "models", check_name(name, "checkpoint"), "versions"))

    def alias_log(self, name: str, alias: str) -> SlotLog:
        """Return the log of an alias's moves."""
        return SlotLog(join_url(self._aliases_url(name), check_alias(alias)))

    def life_log(self, snapshot: str) -> SlotLog:
        """Return the log of a snapshot's condemnations."""
        return SlotLog(join_url(self.url, "life", shorten(snapshot, 64)))

    def manifest_url(self, snapshot: str) -> str:
        """Return where a snapshot's manifest lies."""
        return join_url(self.url, "manifests", f"{name_manifest(snapshot, self.url)}.json")

    def _aliases_url(self, name: str) -> str:
        return join_url(self.url, "models", check_name(name, "checkpoint"), "aliases")

    def _check_format(self, names: list[str]) -> None:
        try:
            found = parse_json(read_record(join_url(self.url, "format.json"))) if "format.json" in names else None
        except ValueError:
            found = None
        if not isinstance(found, dict) or "daskinfer_registry" not in found:
            raise CheckpointError(
                f"{self.url} is not a daskinfer registry; it holds {', '.join(names[:3])}",
                hint="Give an empty or missing folder, or the folder of a registry.",
            )
        if found != FORMAT:
            raise CheckpointError(
                f"registry {self.url} has the format {json.dumps(found)}; this daskinfer reads {json.dumps(FORMAT)}",
                hint="Upgrade daskinfer.",
            )

    def _get_versions(self, name: str) -> list[Version]:
        versions = self.versions(name)
        if not versions:
            raise CheckpointError(
                f"no checkpoint is named {name!r} in registry {self.url}",
                hint=suggest(name, self.names(), "The registry is empty: daskinfer checkpoint publish NAME DIR"),
            )
        return versions

    def _pick_version(self, name: str, target: str, versions: list[Version]) -> Version:
        if match := _VERSION.fullmatch(target):
            found = [each for each in versions if each.number == int(match.group(1))]
        elif _DIGEST.fullmatch(target):
            found = [each for each in versions if each.snapshot.startswith(target)]
        elif target.startswith("sha256:"):
            raise CheckpointError(
                f"{target!r} is not a snapshot digest", hint="Write sha256: and at least 8 hex digits, in lower case."
            )
        else:
            raise CheckpointError(
                f"{target!r} is not a version", hint="Write v3 or sha256:...; an alias could have moved meanwhile."
            )
        if not found:
            known = ", ".join(f"v{each.number} ({shorten(each.snapshot)})" for each in versions[-5:])
            raise CheckpointError(f"{name} has no version {target}", hint=f"It has {known}.")
        if len({each.snapshot for each in found}) > 1:
            raise CheckpointError(f"{target} begins several snapshots of {name}", hint="Give more digits.")
        return max(found, key=lambda each: (each.yanked is None, each.number))

    def _find_latest(self, name: str, versions: list[Version]) -> Version:
        living = [each for each in reversed(versions) if self.life(each.snapshot) != "swept"]
        if not living:
            raise CheckpointError(f"every version of {name} was deleted", hint="Publish it again.")
        latest = next((each for each in living if each.yanked is None), None)
        if latest is None:
            refuse_yanked(name, living[0])
        return latest or living[0]

    def _alias_head(self, name: str, alias: str, versions: list[Version]) -> AliasMove | None:
        head = self.alias_log(name, alias).head()
        return None if head is None else describe_move(alias, head, versions)


_PUBLISH_AGAIN = "Publish the checkpoint again, or choose another version: daskinfer checkpoint list"


@contextmanager
def explain_loss(registry: Registry, snapshot: str) -> Iterator[None]:
    """Say `SnapshotGone` where bytes of a snapshot are missing because it was deleted, not because of damage.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> _ = registry.life_log("sha256:ab").append({"op": "sweep"})
    >>> with explain_loss(registry, "sha256:ab"):
    ...     raise CorruptBlob("the blob is gone")
    Traceback (most recent call last):
        ...
    daskinfer.errors.SnapshotGone: snapshot ab was deleted from registry ... while it was read: the blob is gone...
    """
    try:
        yield
    except CorruptBlob as error:
        if registry.life(snapshot) != "swept":
            raise
        raise SnapshotGone(
            f"snapshot {shorten(snapshot)} was deleted from registry {registry.url} while it was read: {error.message}",
            hint=_PUBLISH_AGAIN,
        ) from error
