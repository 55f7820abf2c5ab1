"""Garbage collection: deletes what nothing keeps, and never what somebody holds.

A snapshot's life is a slot log. Where neither a rule nor a lock keeps a snapshot, a collector

1. appends `condemn`, so that whoever locks it from now on sees that and waits;
2. lists its locks again, and after them what the rules say, for an alias moves under a lock;
3. appends `live` where it found anything, else `sweep`. Of several collectors one wins; a swept digest never lives again;
4. appends `collecting`, and only then looks which blobs others need: see `daskinfer.storage.registry.collection.marks`;
5. deletes the blobs that nobody needs, the manifest, and the locks that are left;
6. appends `collected`.

It may die at any point: the next one goes on from what the log says. Many may run at once. A publish that was cut off is
given up by `abort` in its own log, which keeps it from ever committing; steps 4 to 6 then delete its blobs. No step
looks at a clock: the dead are told from the living by `daskinfer.storage.registry.heartbeats`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from daskinfer.errors import CheckpointError, Conflict, DaskinferError
from daskinfer.ids import shorten
from daskinfer.spec.registry.collection import (
    CollectionReport,
    DeletedSnapshot,
    KeptSnapshot,
    OpenCollection,
)
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.naming import make_signature, suggest
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import marks
from daskinfer.storage.registry.collection.deletion import (
    Blobs,
    count,
    delete_all,
    find_superfluous,
    list_blobs,
    remove_locks,
    remove_pulses,
)
from daskinfer.storage.registry.collection.holders import describe_holder, describe_publication
from daskinfer.storage.registry.collection.liveness import HolderLiveness
from daskinfer.storage.registry.collection.references import Manifests
from daskinfer.storage.registry.collection.retention import Retention, find_keepers, name_versions
from daskinfer.storage.registry.heartbeats import Watcher
from daskinfer.storage.registry.locks import LockHolder, list_holders
from daskinfer.storage.registry.publishing.publications import Publication, abort, list_publications, publish_log
from daskinfer.storage.registry.publishing.publish import finish_all

_UNDECIDED = "another collector is deciding"


def collect(
    registry: Registry,
    retention: Retention | None = None,
    *,
    dry_run: bool = False,
    wait: bool = False,
    assume_dead: Collection[str] = (),
    watcher: Watcher | None = None,
) -> CollectionReport:
    """Delete the snapshots that no alias, no rule and no job keeps, and what unfinished publishes left behind.

    Parameters
    ----------
    registry
        Where.
    retention
        What to keep beside aliases and locks.
    dry_run
        Change nothing; say what would be done.
    wait
        Watch the heartbeats of whoever stands in the way, for as long as each promised to beat; whoever does not is
        taken for dead. Without it everybody counts as alive.
    assume_dead
        Jobs, publishes or collectors that are known to be dead.
    watcher
        Does the watching.

    Raises
    ------
    CheckpointError
        Where nobody goes by a name in `assume_dead`.
    CorruptBlob
        Where a manifest is damaged, so that nobody can tell which blobs are needed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=2)
    >>> report = collect(registry, Retention(keep_versions=1, keep_days=0))
    >>> [snapshot.versions for snapshot in report.deleted], [snapshot.versions for snapshot in report.kept]
    ([('mini v1',)], [('mini v2',)])
    """
    retention = retention or Retention()
    verdicts = HolderLiveness(registry, watcher or Watcher())
    manifests = Manifests(registry)
    committed = [each for each in list_publications(registry) if each.state == "committed"]
    if not dry_run:
        finish_all(registry)
    survey = _look_around(registry, retention)
    for snapshot in survey.manifests:
        manifests.read(snapshot)  # a damaged one stops us before anything is decided
    _check_names(registry, survey, assume_dead)
    verdicts.judge(survey.candidates, survey.publications, assume_dead, wait)
    silent = [each for each in survey.publications if verdicts.is_silent(each)]
    if dry_run:
        outcome = _foresee(survey, verdicts, silent)
        blobs, needed = list_blobs(registry), manifests.find_needed(outcome.swept)
        given_up = [*silent, *(each for each in survey.publications if each.state == "aborted")]
        freed = find_superfluous(manifests, blobs, outcome.swept, given_up, needed)
    else:
        silent = [each for each in silent if abort(registry, each.identity, "collect")]
        outcome = _decide(registry, retention, survey, verdicts)
        blobs = list_blobs(registry)
        given_up = _find_given_up(registry, manifests, blobs)
        freed = delete_all(registry, manifests, blobs, outcome.swept, given_up)
        over = {each.job for each in (*committed, *given_up)}
        remove_locks(registry, over, survey.swept.union(outcome.swept))
        remove_pulses(registry)
        for collector in survey.collectors.keys() & set(assume_dead):
            for log in survey.collectors[collector].logs:
                marks.end(registry.url, log, collector)
    versions = name_versions(registry)
    rank = {snapshot: number for number, snapshot in enumerate(versions)}
    orphans = {identity: blobs for identity, blobs in freed.items() if identity not in outcome.swept}
    total, size = count(freed)
    orphan_blobs, orphan_size = count(orphans)
    return CollectionReport(
        registry=registry.url,
        dry_run=dry_run,
        blobs=total,
        size=size,
        deleted=tuple(
            DeletedSnapshot(
                snapshot=snapshot,
                versions=tuple(versions.get(snapshot, ())),
                blobs=len(freed[snapshot]),
                size=sum(freed[snapshot].values()),
            )
            for snapshot in sorted(outcome.swept, key=lambda snapshot: rank.get(snapshot, len(rank)))
        ),
        kept=tuple(
            KeptSnapshot(
                snapshot=snapshot,
                versions=tuple(versions.get(snapshot, ())),
                reasons=tuple(reasons),
                holders=tuple(describe_holder(registry, snapshot, each) for each in holders),
            )
            for snapshot, (reasons, holders) in sorted(
                outcome.kept.items(), key=lambda item: rank.get(item[0], len(rank))
            )
        ),
        finished=tuple(describe_publication(registry, each) for each in committed),
        aborted=tuple(describe_publication(registry, each) for each in silent),
        waiting=tuple(
            describe_publication(registry, each)
            for each in survey.publications
            if each.state == "begun" and each not in silent
        ),
        orphan_blobs=orphan_blobs,
        orphan_size=orphan_size,
        collections=tuple(
            OpenCollection(collector=name, by=each.by, since=each.since)
            for name, each in survey.collectors.items()
            if name not in assume_dead
        ),
    )


@dataclass(slots=True)
class _Collector:
    """A turn of garbage collection that has not come to an end."""

    by: str
    since: str
    logs: list[SlotLog] = field(default_factory=list)


@dataclass(slots=True)
class _Survey:
    """The registry as it was found."""

    manifests: list[str]
    """Digests of the manifests that are there."""
    publications: list[Publication]
    """Publishes that are not done."""
    swept: set[str]
    """Deleted snapshots."""
    keepers: dict[str, list[str]]
    """Why snapshots are kept."""
    candidates: dict[str, list[LockHolder]]
    """Snapshots that no rule keeps, or that somebody condemned, and who holds them."""
    leftovers: list[str]
    """Deleted snapshots of which something may be left."""
    collectors: dict[str, _Collector]
    """Other collectors that are deleting something."""


@dataclass(slots=True)
class _Outcome:
    """What became of the snapshots."""

    swept: list[str]
    """Those to be deleted."""
    kept: dict[str, tuple[list[str], list[LockHolder]]]
    """The others: why, and who holds them."""


def _look_around(registry: Registry, retention: Retention) -> _Survey:
    manifests = Manifests(registry)
    # In this order: a publish whose manifest is there is still listed, or has its version and its alias.
    names = manifests.names()
    publications = list_publications(registry)
    logs = {
        snapshot: registry.life_log(snapshot)
        for snapshot in (f"sha256:{name}" for name in list_names(join_url(registry.url, "life")))
    }
    lives = {snapshot: [slot.record for slot in log.read()] for snapshot, log in logs.items()}
    swept = {snapshot for snapshot, records in lives.items() if any(each["op"] == "sweep" for each in records)}
    condemned = {snapshot for snapshot, records in lives.items() if records and records[-1]["op"] == "condemn"}
    keepers = find_keepers(registry, retention, publications, swept)
    doubtful = [name for name in names if name not in swept and name not in keepers]
    collectors: dict[str, _Collector] = {}
    given_up = [(publish_log(registry, each.identity), each.records) for each in publications]
    for log, records in [*((logs[snapshot], lives[snapshot]) for snapshot in swept), *given_up]:
        for name, mark in marks.find_open(records).items():
            collectors.setdefault(name, _Collector(mark["who"], mark["at"])).logs.append(log)
    return _Survey(
        manifests=names,
        publications=publications,
        swept=swept,
        keepers={snapshot: reasons for snapshot, reasons in keepers.items() if snapshot not in swept},
        candidates={name: list_holders(registry, name) for name in sorted({*doubtful, *condemned})},
        leftovers=sorted(each for each in swept if each in names or not marks.is_closed(lives[each])),
        collectors=collectors,
    )


def _foresee(survey: _Survey, verdicts: HolderLiveness, silent: Sequence[Publication]) -> _Outcome:
    """Return what would be decided."""
    outcome = _Outcome([*survey.leftovers], _keep_by_rule(survey))
    publishers = {each.job for each in silent}
    for snapshot, holders in survey.candidates.items():
        living = [each for each in holders if each.job not in publishers and not verdicts.is_dead(snapshot, each)]
        if living or snapshot in survey.keepers:
            outcome.kept[snapshot] = (survey.keepers.get(snapshot, []), living)
        else:
            outcome.swept.append(snapshot)
    return outcome


def _decide(registry: Registry, retention: Retention, survey: _Survey, verdicts: HolderLiveness) -> _Outcome:
    outcome = _Outcome([*survey.leftovers], _keep_by_rule(survey))
    condemned: dict[str, int] = {}
    try:
        for snapshot, holders in survey.candidates.items():
            living = [each for each in holders if not verdicts.is_dead(snapshot, each)]
            sequence = _condemn(registry, snapshot, begin=not living)
            if sequence is None:
                outcome.kept[snapshot] = (survey.keepers.get(snapshot, [] if living else [_UNDECIDED]), living)
            else:
                condemned[snapshot] = sequence
        found = {snapshot: verdicts.find_living(snapshot) for snapshot in condemned}
        # After the locks: an alias that moved meanwhile did so under one.
        keepers = find_keepers(registry, retention, list_publications(registry), survey.swept)
        for snapshot, living in found.items():
            reasons = keepers.get(snapshot, [])
            verdict = "live" if living or reasons else "sweep"
            won = _append(registry, snapshot, verdict, condemned.pop(snapshot) + 1)
            if (verdict == "sweep") if won else registry.life(snapshot) == "swept":
                outcome.swept.append(snapshot)
            else:
                outcome.kept[snapshot] = (reasons or ([] if living else [_UNDECIDED]), living)
    except BaseException:
        with suppress(DaskinferError, OSError):
            for snapshot, sequence in condemned.items():
                _append(registry, snapshot, "live", sequence + 1)
        raise
    return outcome


def _keep_by_rule(survey: _Survey) -> dict[str, tuple[list[str], list[LockHolder]]]:
    return {
        snapshot: (survey.keepers[snapshot], [])
        for snapshot in survey.manifests
        if snapshot in survey.keepers and snapshot not in survey.candidates
    }


def _condemn(registry: Registry, snapshot: str, begin: bool) -> int | None:
    """Return the number of the record that condemns a snapshot; None where there is none and none is wanted."""
    head = registry.life_log(snapshot).head()
    if head is not None and head.record["op"] == "condemn":
        return head.sequence
    if not begin or (head is not None and head.record["op"] != "live"):
        return None
    sequence = 0 if head is None else head.sequence + 1
    return sequence if _append(registry, snapshot, "condemn", sequence) else None


def _append(registry: Registry, snapshot: str, operation: str, expect: int) -> bool:
    decision = Decision(registry.url, "collect", f"life/{shorten(snapshot, 64)}")
    try:
        authorised_writes.append(
            decision, registry.life_log(snapshot), {"op": operation, **make_signature()}, expect=expect
        )
    except Conflict:
        return False
    return True


def _find_given_up(registry: Registry, manifests: Manifests, blobs: Blobs) -> list[Publication]:
    """Return the aborted publishes that nobody has cleaned up after, or that stored something since."""
    aborted = [each for each in list_publications(registry) if each.state == "aborted"]
    left = find_superfluous(manifests, blobs, (), aborted, manifests.find_needed() if aborted else ())
    return [each for each in aborted if left[each.identity] or not marks.is_closed(each.records)]


def _check_names(registry: Registry, survey: _Survey, names: Collection[str]) -> None:
    root = join_url(registry.url, "locks")
    known = {*survey.collectors, *(each.job for each in survey.publications)}
    for folder in list_names(root) if names else ():
        known.update(
            name.removesuffix(".json") for name in list_names(join_url(root, folder)) if name.endswith(".json")
        )
    for name in names:
        if name not in known:
            raise CheckpointError(
                f"{name} holds nothing in registry {registry.url}",
                hint=suggest(name, known, "Nobody does: run it without --assume-dead."),
            )
