"""Looking a registry over: is all there that its records promise, and is it what they say?

Only reading, without locks: what garbage collection takes away meanwhile is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from daskinfer.errors import CheckpointError, CorruptBlob, IntegrityError, SnapshotGone
from daskinfer.ids import shorten
from daskinfer.spec.registry.upkeep import Finding, Verification
from daskinfer.spec.snapshot import LayerGroup, Manifest, PlainFile
from daskinfer.storage.objects.filesystem import exists, list_names
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.tensors.folder import Folder
from daskinfer.storage.tensors.scans import scan_file, scan_group

Watch = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many bytes are done."""

_RESTORE_BLOB = "Restore that file from a copy, or publish the checkpoint again as a new version."
_RESTORE_LOG = "Restore that folder from a copy of the registry."
_RESTORE_REFERENCE = "Put the file back as it was, or publish the checkpoint again."
_COLLECT = "Nothing is lost; daskinfer checkpoint gc clears it up."
_CONNECTIONS = 16


def verify(
    registry: Registry, reference: str | None = None, *, deep: bool = False, watch: Watch | None = None
) -> Verification:
    """Look over one checkpoint, or a whole registry.

    Parameters
    ----------
    registry
        Which.
    reference
        `NAME@...`; by default everything.
    deep
        Read and hash every byte, those that are only referred to as well.
    watch
        Called with the progress.

    Raises
    ------
    CheckpointError
        There is no such checkpoint, or no registry.
    StorageError
        The store refuses.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> seen = verify(make_registry("registry", versions=2), deep=True)
    >>> seen.snapshots, seen.findings
    (2, ())
    """
    looking = _Looking(registry)
    if reference is not None:
        snapshots = [registry.resolve(reference, yanked=True).snapshot]
    else:
        if not list_names(registry.url):
            raise CheckpointError(f"there is no registry at {registry.url}", hint="Check the URL.")
        snapshots = looking.read_logs()
        looking.read_publishes()
        looking.read_locks()
    looking.read_manifests(snapshots)
    looking.look_for_bytes()
    if deep:
        looking.read_bytes(watch or (lambda doing, done, total: None))
    return looking.conclude(reference, deep)


@dataclass(frozen=True, slots=True)
class _Place:
    """A blob, or a file that a checkpoint refers to."""

    snapshot: str
    what: str
    size: int
    exact: bool
    content: PlainFile | LayerGroup


@dataclass(slots=True)
class _Looking:
    registry: Registry
    found: list[tuple[str | None, Finding]] = field(default_factory=list)
    places: dict[str, _Place] = field(default_factory=dict)
    groups: dict[str, tuple[str, LayerGroup]] = field(default_factory=dict)
    snapshots: int = 0
    tensors: int = 0
    logs: int = 0

    def read_logs(self) -> list[str]:
        """Read what names lead to; return the snapshots that have to be there."""
        registry = self.registry
        manifests = list_names(join_url(registry.url, "manifests"))
        snapshots = {f"sha256:{name.removesuffix('.json')}" for name in manifests}
        for name in registry.names():
            for slot in self.read_log(registry.versions_log(name)):
                if slot.record["op"] == "publish":
                    snapshots.add(slot.record["snapshot"])
            for alias in registry.alias_names(name):
                moves = self.read_log(registry.alias_log(name, alias))
                snapshots.update(slot.record["snapshot"] for slot in moves[-1:] if slot.record["snapshot"] is not None)
        for folder in ("life", "sigs"):
            for name in list_names(join_url(registry.url, folder)):
                self.read_log(SlotLog(join_url(registry.url, folder, name)))
        return sorted(snapshots)

    def read_log(self, log: SlotLog) -> list[Slot]:
        self.logs += 1
        try:
            return log.read()
        except IntegrityError as error:
            self.tell(None, True, error.message, log.url, _RESTORE_LOG)
            return []

    def read_publishes(self) -> None:
        """Read how every publish ended."""
        folder = join_url(self.registry.url, "publish")
        names = list_names(folder)
        done = {name.removesuffix(".done") for name in names if name.endswith(".done")}
        for name in names:
            if "." in name:
                continue
            slots = self.read_log(SlotLog(join_url(folder, name)))
            if not slots or name in done:
                continue
            head, begun = slots[-1].record["op"], slots[0].record
            origin = f"of {begun.get('name')}, begun by {begun.get('by')} at {begun.get('at')}"
            if head == "commit":
                advice = "The next publish to this registry finishes it."
                self.tell(None, False, f"publish {name} {origin}, is committed and not finished", folder, advice)
            elif head != "collected":
                said = "is not finished: it may be under way" if head == "begin" else "was given up"
                self.tell(None, False, f"publish {name} {origin}, {said}", join_url(folder, name), _COLLECT)

    def read_locks(self) -> None:
        """Look for locks on what is not there."""
        folder = join_url(self.registry.url, "locks")
        for name in list_names(folder):
            snapshot = f"sha256:{name}"
            if exists(self.registry.manifest_url(snapshot)):
                continue
            for holder in locks.list_holders(self.registry, snapshot):
                what = f"a lock of {holder.job} by {holder.by} holds snapshot {shorten(snapshot)}, which is gone"
                self.tell(None, False, what, join_url(folder, name), _COLLECT)

    def read_manifests(self, snapshots: list[str]) -> None:
        """Read manifests, and note what they say must be there."""
        for snapshot in snapshots:
            if self.is_swept(snapshot):
                continue
            try:
                manifest = self.registry.manifest(snapshot)
            except SnapshotGone:
                continue
            except (CorruptBlob, CheckpointError) as error:
                advice = error.hint if isinstance(error, CorruptBlob) and error.hint else _RESTORE_BLOB
                self.tell(snapshot, True, error.message, self.registry.manifest_url(snapshot), advice)
                continue
            self.snapshots += 1
            for url, place in _list_places(self.registry, snapshot, manifest):
                known = self.places.get(url)
                if known is None or known.size < place.size:
                    self.places[url] = place
            for group in manifest.groups:
                key = group.blob or f"{snapshot} {group.name}"
                self.groups.setdefault(key, (snapshot, group))

    def look_for_bytes(self) -> None:
        """Look for every blob, and ask for its length."""
        folder = Folder(self.registry.url)
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="verify") as pool:
            for (url, place), size in zip(self.places.items(), pool.map(folder.size, self.places), strict=True):
                if size is not None and (size == place.size or (size > place.size and not place.exact)):
                    continue
                problem = "is gone" if size is None else f"has {size} bytes, not {place.size}"
                self.tell(place.snapshot, True, f"{place.what} {problem}", url, _advise(place.exact))

    def read_bytes(self, watch: Watch) -> None:
        """Hash everything that is there."""
        missing = {finding.where for _, finding in self.found}
        total, done = self.size, 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            watch("hashing", done, total)

        for url, place in self.places.items():
            if isinstance(place.content, PlainFile) and url not in missing:
                for problem in scan_file(self.registry.url, place.content, count):
                    self.tell(place.snapshot, True, f"{place.what}: {problem}", url, _RESTORE_BLOB)
        for snapshot, group in self.groups.values():
            url = self.registry.url if group.blob is None else join_url(self.registry.url, group.blob)
            if url in missing or any(entry.file in missing for entry in group.tensors):
                continue
            for problem in scan_group(self.registry.url, group, count):
                what = f"{_name_group(group, snapshot)}: {problem}"
                self.tell(snapshot, True, what, url, _advise(group.blob is not None))

    def is_swept(self, snapshot: str) -> bool:
        try:
            return self.registry.life(snapshot) == "swept"
        except IntegrityError:  # told where the log itself was read
            return False

    @property
    def size(self) -> int:
        """Bytes that reading everything takes."""
        files = sum(place.size for place in self.places.values() if isinstance(place.content, PlainFile))
        return files + sum(_count_bytes(group) for _, group in self.groups.values())

    def tell(self, snapshot: str | None, damaged: bool, what: str, where: str, advice: str) -> None:
        self.found.append((snapshot, Finding(damaged=damaged, what=what, where=where, advice=advice)))

    def conclude(self, reference: str | None, deep: bool) -> Verification:
        # What was deleted while it was looked at was not damaged.
        suspects = {snapshot for snapshot, _ in self.found if snapshot is not None}
        swept = {snapshot for snapshot in suspects if self.is_swept(snapshot)}
        findings = [finding for snapshot, finding in self.found if snapshot not in swept]
        return Verification(
            registry=self.registry.url,
            reference=reference,
            deep=deep,
            snapshots=self.snapshots,
            blobs=len(self.places),
            tensors=sum(len(group.tensors) for _, group in self.groups.values()),
            size=self.size,
            logs=self.logs,
            findings=tuple(sorted(findings, key=lambda finding: not finding.damaged)),
        )


def _list_places(registry: Registry, snapshot: str, manifest: Manifest) -> Iterator[tuple[str, _Place]]:
    for piece in manifest.files:
        what = f"{piece.path} of {shorten(snapshot)}"
        yield join_url(registry.url, piece.blob), _Place(snapshot, what, piece.size, True, piece)
    for group in manifest.groups:
        what = _name_group(group, snapshot)
        if group.blob is not None:
            yield join_url(registry.url, group.blob), _Place(snapshot, what, group.size, True, group)
            continue
        for entry in group.tensors:
            if entry.file is not None:
                yield entry.file, _Place(snapshot, f"tensor {entry.name} of {what}", entry.end, False, group)


def _name_group(group: LayerGroup, snapshot: str) -> str:
    return f"layer group {group.name} of {shorten(snapshot)}"


def _count_bytes(group: LayerGroup) -> int:
    return sum(entry.end - entry.begin for entry in group.tensors) if group.blob is None else group.size


def _advise(copied: bool) -> str:
    return _RESTORE_BLOB if copied else _RESTORE_REFERENCE
