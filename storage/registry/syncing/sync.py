"""Bringing one registry up to another: snapshots, versions, yanks, signatures and aliases.

What never changes is merged as a set. An alias goes forward where the target's history is the beginning of the source's;
where both have moves that the other does not know, nothing of it is changed until somebody says whose target to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daskinfer.errors import CheckpointError, Conflict, SnapshotGone, UsageError, YankedVersion
from daskinfer.ids import make_nonce, parse_json, shorten
from daskinfer.spec.registry.listing import AliasMove
from daskinfer.spec.registry.upkeep import Outcome, SyncedAlias, SyncedVersion, SyncReport
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import exists
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.aliases import append_move
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import append_version, finish_all
from daskinfer.storage.registry.syncing.copying import copy_snapshot
from daskinfer.storage.registry.syncing.merging import Side, compare_histories, make_merge
from daskinfer.storage.registry.version_log import Version, describe_move, fold

Watch = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many bytes are done."""

_ATTEMPTS = 5


def sync(
    source: Registry,
    target: Registry,
    references: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resolve: Mapping[str, Side] | None = None,
    watch: Watch | None = None,
) -> SyncReport:
    """Copy what the source has and the target lacks.

    Parameters
    ----------
    source, target
        From where to where; nothing but a lock, for a while, is written to the source.
    references
        `NAME` for a model with all its versions and aliases, `NAME@...` for one version, and the alias where it names
        one. By default everything.
    dry_run
        Write nothing; only say what would be done.
    resolve
        `NAME@ALIAS` -> whose target to keep, for aliases that were moved in both.
    watch
        Called with the progress.

    Raises
    ------
    CheckpointError
        There is no such checkpoint in the source.
    CorruptBlob
        What should be copied is damaged.
    StorageError
        A store refuses, or garbage collection in the target is in the way.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> report = sync(make_registry("source", versions=1), Registry("target"))
    >>> [version.outcome for version in report.versions], [alias.outcome for alias in report.aliases]
    (['copied'], ['forward'])
    >>> Registry("target").resolve("mini@prod").version
    1
    """
    if source.url == target.url:
        raise UsageError(f"{source.url} cannot be synced with itself", hint="Give two registries.")
    scopes = _choose(source, references)
    for key in resolve or {}:
        name, _, alias = key.partition("@")
        if not any(scope.name == name and alias in scope.aliases for scope in scopes):
            raise CheckpointError(
                f"nothing is synced as {key}, so there is nothing to resolve", hint="Write NAME@ALIAS."
            )
    if not dry_run:
        target.initialise()
        finish_all(target)
    plans = [_plan(source, target, scope) for scope in scopes]
    pending = [size for plan in plans for outcome, size in plan.outcomes.values() if outcome == "copied"]
    progress = _Progress(watch or (lambda doing, done, total: None), sum(pending))
    work = _Work(source, target, dry_run, resolve or {}, progress)
    for plan in plans:
        work.bring(plan)
    return SyncReport(
        source=source.url,
        target=target.url,
        dry_run=dry_run,
        versions=tuple(work.versions),
        aliases=tuple(work.aliases),
        yanks=work.yanks,
        signatures=work.signatures,
    )


@dataclass(slots=True)
class _Scope:
    """What of a model is asked for."""

    name: str
    snapshots: set[str] = field(default_factory=set)
    aliases: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What of a model the source has, read once; its aliases before its versions, which so have what they point to."""

    name: str
    histories: dict[str, list[bytes]]
    records: list[dict[str, Any]]
    versions: list[Version]
    chosen: list[Version]
    outcomes: dict[str, tuple[Outcome, int]]
    """Snapshot -> what becomes of it, and how many bytes that takes."""


@dataclass(slots=True)
class _Progress:
    watch: Watch
    total: int
    done: int = 0

    def __call__(self, size: int) -> None:
        self.done += size
        self.watch("copying", self.done, self.total)


def _choose(source: Registry, references: Iterable[str]) -> list[_Scope]:
    scopes: dict[str, _Scope] = {}
    for reference in references or source.names():
        name, _, target = reference.partition("@")
        scope = scopes.setdefault(name, _Scope(name))
        if "@" not in reference:
            scope.aliases.update(source.alias_names(name))
            scope.snapshots.update(version.snapshot for version in source.versions(name))
            if not scope.snapshots:
                source.resolve(name)  # says what is wrong with the name
            continue
        resolution = source.resolve(reference, yanked=True)
        scope.snapshots.add(resolution.snapshot)
        if resolution.alias is not None:
            scope.aliases.add(target)
    if not scopes:
        raise CheckpointError(f"registry {source.url} holds no checkpoints", hint="Check the URL.")
    return list(scopes.values())


def _plan(source: Registry, target: Registry, scope: _Scope) -> _Plan:
    histories = {alias: source.alias_log(scope.name, alias).read_raw() for alias in sorted(scope.aliases)}
    records = [slot.record for slot in source.versions_log(scope.name).read()]
    versions = fold(records)
    chosen = [version for version in versions if version.snapshot in scope.snapshots]
    outcomes = {version.snapshot: _foresee(source, target, version.snapshot) for version in chosen}
    return _Plan(scope.name, histories, records, versions, chosen, outcomes)


def _foresee(source: Registry, target: Registry, snapshot: str) -> tuple[Outcome, int]:
    if target.life(snapshot) == "swept":
        return "deleted", 0
    if exists(target.manifest_url(snapshot)):
        return "there", 0
    manifest = _find_manifest(source, snapshot)
    return ("gone", 0) if manifest is None else ("copied", sum(manifest.blobs.values()))


def _find_manifest(registry: Registry, snapshot: str) -> Manifest | None:
    try:
        return None if registry.life(snapshot) == "swept" else registry.manifest(snapshot)
    except (CheckpointError, SnapshotGone):
        return None


@dataclass(slots=True)
class _Work:
    source: Registry
    target: Registry
    dry_run: bool
    resolve: Mapping[str, Side]
    progress: _Progress
    versions: list[SyncedVersion] = field(default_factory=list)
    aliases: list[SyncedAlias] = field(default_factory=list)
    yanks: int = 0
    signatures: int = 0

    def bring(self, plan: _Plan) -> None:
        """Bring one model: what its names lead to before the names."""
        for snapshot, (outcome, _) in plan.outcomes.items():
            if outcome == "copied" and not self.dry_run:
                self.copy(plan, snapshot)
        here = [version for version in plan.chosen if plan.outcomes[version.snapshot][0] in ("there", "copied")]
        if not self.dry_run:
            for version in here:
                append_version(self.target, plan.name, _describe_origin(version))
        numbers = {version.snapshot: version.number for version in self.target.versions(plan.name)}
        self.bring_yanks(plan, here, numbers)
        for snapshot in {version.snapshot: None for version in here}:
            self.bring_signatures(snapshot)
        for version in plan.chosen:
            outcome, size = plan.outcomes[version.snapshot]
            manifest = _find_manifest(self.source, version.snapshot) if outcome == "copied" else None
            self.versions.append(
                SyncedVersion(
                    name=plan.name,
                    number=version.number,
                    snapshot=version.snapshot,
                    outcome=outcome,
                    size=size,
                    referred=0 if manifest is None else sum(group.blob is None for group in manifest.groups),
                    becomes=numbers.get(version.snapshot),
                )
            )
        for alias, history in plan.histories.items():
            self.aliases.append(self.bring_alias(plan, alias, history))

    def copy(self, plan: _Plan, snapshot: str) -> None:
        origins = [_describe_origin(version) for version in plan.chosen if version.snapshot == snapshot]
        try:
            copy_snapshot(self.source, self.target, snapshot, origins, self.progress)
        except SnapshotGone:  # deleted since the plan was made
            plan.outcomes[snapshot] = ("gone", 0)

    def bring_yanks(self, plan: _Plan, here: list[Version], numbers: Mapping[str, int]) -> None:
        """Append the yanks, and what takes them back, that the target does not know."""
        log = self.target.versions_log(plan.name)
        theirs = [slot.record for slot in log.read()]
        known = {record["yank"] for record in theirs if record["op"] == "yank"}
        undone = {identity for record in theirs if record["op"] == "unyank" for identity in record["undoes"]}
        wanted = {version.number: numbers.get(version.snapshot) for version in here}
        for record in plan.records:
            if record["op"] == "publish" or record["version"] not in wanted:
                continue
            if record["yank"] in known if record["op"] == "yank" else undone.issuperset(record["undoes"]):
                continue
            self.yanks += 1
            if not self.dry_run:
                decision = Decision(self.target.url, "yank", f"models/{plan.name}/versions")
                authorised_writes.append(decision, log, record | {"version": wanted[record["version"]]})

    def bring_signatures(self, snapshot: str) -> None:
        """Append the signatures that the target does not have."""
        ours, theirs = (
            SlotLog(join_url(registry.url, "sigs", shorten(snapshot, 64))) for registry in (self.source, self.target)
        )
        there = theirs.read_raw()
        for data in ours.read_raw():
            if data in there:
                continue
            self.signatures += 1
            if self.dry_run:
                continue
            decision = Decision(self.target.url, "sign", f"sigs/{shorten(snapshot, 64)}")
            sequence = len(there)
            while not authorised_writes.create_record(decision, theirs.slot_url(sequence), data):
                sequence += 1
            there.append(data)

    def bring_alias(self, plan: _Plan, alias: str, ours: list[bytes]) -> SyncedAlias:
        """Bring an alias's history, as far as the target's allows."""
        log = self.target.alias_log(plan.name, alias)
        for _ in range(_ATTEMPTS):
            theirs = log.read_raw()
            told: dict[str, Any] = {
                "name": plan.name,
                "alias": alias,
                "source": _describe_head(alias, ours, plan.versions),
                "target": _describe_head(alias, theirs, self.target.versions(plan.name)) if theirs else None,
            }
            comparison = compare_histories(ours, theirs)
            course = comparison.course
            keep = self.resolve.get(f"{plan.name}@{alias}") if course == "conflict" else None
            if course in ("equal", "ahead") or (course == "conflict" and keep is None):
                return SyncedAlias(outcome=course, **told)
            outcome = course if keep is None else "merged"
            moves = len(comparison.records) or 1
            record = None if course == "forward" else make_merge(ours, theirs, keep or "source")
            snapshot = parse_json(ours[-1])["snapshot"] if record is None else record["snapshot"]
            try:
                if self.dry_run:
                    self.check_target(plan, snapshot)
                elif record is not None:
                    append_move(self.target, plan.name, alias, record | make_signature(), len(theirs))
                else:
                    self.go_forward(plan.name, alias, snapshot, len(theirs), comparison.records)
            except Conflict:
                continue  # somebody moved it meanwhile: compare again
            except (SnapshotGone, YankedVersion) as error:
                return SyncedAlias(outcome="blocked", problem=error.message, **told)
            return SyncedAlias(outcome=outcome, moves=moves, **told)
        raise Conflict(
            f"{plan.name}@{alias} of {self.target.url} keeps being moved", hint="Run the same command again."
        )

    def check_target(self, plan: _Plan, snapshot: str | None) -> None:
        """Raise where an alias could not point there after a real run."""
        planned = snapshot is None or plan.outcomes.get(snapshot, ("gone", 0))[0] == "copied"
        if not planned and _find_manifest(self.target, snapshot or "") is None:
            raise SnapshotGone(f"snapshot {shorten(snapshot or '')} is not in {self.target.url}")

    def go_forward(self, name: str, alias: str, snapshot: str | None, sequence: int, records: Sequence[bytes]) -> None:
        """Append the source's own bytes, under a lock on what the last of them points to."""
        log = self.target.alias_log(name, alias)
        decision = Decision(self.target.url, "alias", f"models/{name}/aliases/{alias}")
        lock = None
        if snapshot is not None:
            lock = locks.take(self.target, snapshot, f"alias-{make_nonce()}", purpose="alias")
        try:
            for number, data in enumerate(records, start=sequence):
                if not authorised_writes.create_record(decision, log.slot_url(number), data):
                    raise Conflict(f"move {number} of {name}@{alias} was taken")
        finally:
            if lock is not None:
                lock.release()


def _describe_origin(version: Version) -> dict[str, Any]:
    return {"snapshot": version.snapshot, "publish": version.publish, "by": version.by, "at": version.created}


def _describe_head(alias: str, history: Sequence[bytes], versions: Sequence[Version]) -> AliasMove:
    return describe_move(alias, Slot(len(history) - 1, parse_json(history[-1])), versions)
