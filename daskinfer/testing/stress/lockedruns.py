"""Jobs that lock, read and release snapshots while collectors delete and publishers publish, all under random faults.

What must never happen is a violation: a holder misses or misreads a byte while it has its lock, two writers get one
number of a log, or something that was acknowledged is lost.

::

    python -m daskinfer.testing.stress.lockedruns REGISTRY DIARY SEED RATES

does all three kinds of work until it is killed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from daskinfer.errors import CheckpointError, Conflict, CorruptBlob, MissingEvent, SnapshotGone
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.filesystem import delete, list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.collection.references import Manifests
from daskinfer.storage.registry.publishing.publish import CheckpointSource, publish
from daskinfer.testing.contracts.storefaults import FAILURES, insist
from daskinfer.testing.faults.faulty_filesystem import FaultSchedule
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.fixtures.registries import NOTHING, VirtualTime, check_registry, read_all

NAME, ALIAS = "mini", "prod"
MANY_ACTORS, FEW_ACTORS = (3, 2, 1), (2, 1, 1)
"""Jobs, publishers and collectors: threads of a process. Small ones where processes are many or requests take long."""

_ActorCounts = tuple[int, int, int]
_DELAY_SECONDS = 0.02
_SNAPSHOTS = 5
"""As long as there are more, publishers wait for the collectors."""


class Diary:
    """What happened, line by line in a local file: of many processes, and of those that were killed too.

    Parameters
    ----------
    path
        The file.

    Examples
    --------
    >>> diary = Diary(Path("diary"))
    >>> diary.note("published", number=1)
    >>> list(diary.read("published")), diary.count()["gone"]
    ([{'kind': 'published', 'number': 1}], 0)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def note(self, kind: str, **detail: Any) -> None:
        """Write down that something happened."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, json.dumps({"kind": kind, **detail}).encode() + b"\n")
        finally:
            os.close(file)

    def read(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield what happened of these kinds, in order."""
        for line in self._path.read_text().splitlines():
            if (entry := json.loads(line))["kind"] in kinds:
                yield entry

    def count(self) -> Counter[str]:
        """Return how often each kind of thing happened."""
        return Counter(json.loads(line)["kind"] for line in self._path.read_text().splitlines())


@dataclass
class Outcome:
    """What came of many locked runs."""

    counts: Counter[str] = field(default_factory=Counter)
    """`run`: locked, read and released; `gone`: refused, for the snapshot was being deleted; `failed`: stopped by a fault;
    `published`, `moved`, `swept`; `killed` processes; and `fault NAME`."""
    violations: list[str] = field(default_factory=list)
    """What must never happen."""

    def add(self, other: Outcome) -> None:
        """Count another one too."""
        self.counts += other.counts
        self.violations += other.violations


def run_in_threads(
    url: str, diary: Path, runs: int, rates: Mapping[str, float], seed: int, counts: _ActorCounts = MANY_ACTORS
) -> Outcome:
    """Do locked runs in threads of this process, until there were enough or a violation.

    Parameters
    ----------
    url
        A folder that is not there, for the registry; it is deleted afterwards.
    diary
        A file that is not there yet.
    runs
        How many, at least.
    rates
        Of the faults; see `FaultSchedule`.
    seed
        Of the faults, and of what is done.
    counts
        How many threads do what.
    """
    notes = _begin(url, diary)
    schedule = FaultSchedule(seed, rates, _DELAY_SECONDS)
    with schedule.installed():
        _act(url, notes, schedule, seed, counts, lambda: _is_enough(notes, runs))
    outcome = _settle(url, notes)
    outcome.counts.update({f"fault {name}": hits for name, hits in schedule.hits.items()})
    return outcome


def run_in_processes(
    url: str, diary: Path, runs: int, rates: Mapping[str, float], seed: int, processes: int = 2
) -> Outcome:
    """Do locked runs in processes that are killed now and then, and others started in their place.

    Parameters
    ----------
    url, diary, runs, rates, seed
        See `run_in_threads`; here there may be a rate of `kill` too.
    processes
        How many at once.
    """
    notes = _begin(url, diary)
    words = [sys.executable, "-m", "daskinfer.testing.stress.lockedruns", url, str(diary)]
    children: list[subprocess.Popen[bytes]] = []
    try:
        while not _is_enough(notes, runs):
            for child in [child for child in children if child.poll() is not None]:
                if child.returncode != -9:
                    raise RuntimeError(f"a process ended with {child.returncode}")
                notes.note("killed")
                children.remove(child)
            while len(children) < processes:
                seed += 1
                children.append(subprocess.Popen([*words, str(seed), json.dumps(dict(rates))]))
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return _settle(url, notes)


def _begin(url: str, diary: Path) -> Diary:
    notes = Diary(diary)
    publish(Registry(url), NAME, _make_source(0))
    return notes


def _is_enough(notes: Diary, runs: int) -> bool:
    counts = notes.count()
    return counts["run"] >= runs or counts["violation"] > 0


def _act(
    url: str, notes: Diary, schedule: FaultSchedule, seed: int, counts: _ActorCounts, is_enough: Callable[[], bool]
) -> None:
    """Let threads work until it is enough; the jobs stop first, for they may wait for a collector's verdict."""
    registry = insist(partial(Registry, url))
    actors: dict[_Work, int] = dict(zip((_hold, _publish, _collect), counts, strict=True))
    stops = {work: threading.Event() for work in actors}
    threads: dict[_Work, list[threading.Thread]] = {}

    def repeat(work: _Work, number: int) -> None:
        chance = random.Random(f"{seed} {work.__name__} {number}")
        while not stops[work].is_set():
            try:
                work(registry, notes, schedule, chance)
            except (*FAILURES, CheckpointError):  # the latter where `format.json` came back short
                notes.note("failed")
            except Exception as error:  # noqa: BLE001 - whatever else comes out is not what faults may lead to
                notes.note("violation", what=f"{work.__name__.strip('_')} ended with {error!r}")

    for work, many in actors.items():
        threads[work] = [threading.Thread(target=repeat, args=(work, number), daemon=True) for number in range(many)]
        for thread in threads[work]:
            thread.start()
    while not is_enough():
        time.sleep(0.05)
    for work, group in threads.items():
        stops[work].set()
        for thread in group:
            thread.join()


_Work = Callable[[Registry, Diary, FaultSchedule, random.Random], None]


def _hold(registry: Registry, notes: Diary, schedule: FaultSchedule, chance: random.Random) -> None:
    names = Manifests(registry).names()
    if not names:
        time.sleep(0.002)
        return
    snapshot, job = chance.choice(names), f"job-{make_nonce()}"
    if chance.random() < 0.3:
        _await_collector(registry, snapshot)
        time.sleep(chance.random() * 0.02)
    try:
        lock = locks.take(registry, snapshot, job)
    except SnapshotGone:
        notes.note("gone")
        time.sleep(0.005)
        return
    except FAILURES:
        with schedule.paused():  # the job will never run
            locks.remove(registry, snapshot, job)
        raise
    time.sleep(chance.random() * 0.005)
    try:
        read_all(registry, lock.manifest)
    except (*FAILURES, SnapshotGone) as error:
        # Or was that a fault? Then the bytes are there.
        with schedule.paused():
            try:
                read_all(registry, lock.manifest)
            except (*FAILURES, SnapshotGone):
                notes.note("violation", what=f"{job} misses bytes of {snapshot}: {error}")
    insist(lock.release)
    notes.note("run")


def _await_collector(registry: Registry, snapshot: str) -> None:
    """Wait a little until somebody is about to delete a snapshot: the worst moment to lock it."""
    until = time.monotonic() + 0.05
    while time.monotonic() < until and registry.life(snapshot) == "live":
        time.sleep(0.001)


def _publish(registry: Registry, notes: Diary, schedule: FaultSchedule, chance: random.Random) -> None:
    if len(Manifests(registry).names()) > _SNAPSHOTS:
        time.sleep(0.005)
        return
    found = publish(registry, NAME, _make_source(chance.getrandbits(32)))
    notes.note("published", number=found.version, snapshot=found.snapshot)
    if chance.random() < 0.3:
        head = registry.alias_log(NAME, ALIAS).head()
        expect = 0 if head is None else head.sequence + 1
        with suppress(Conflict, SnapshotGone):
            move = set_alias(registry, NAME, ALIAS, found.snapshot, expect=expect)
            notes.note("moved", number=move.sequence, snapshot=found.snapshot)


def _collect(registry: Registry, notes: Diary, schedule: FaultSchedule, chance: random.Random) -> None:
    time.sleep(chance.random() * 0.01)
    for row in collect(registry, NOTHING).deleted:
        notes.note("swept", snapshot=row.snapshot)


def _make_source(seed: int) -> CheckpointSource:
    """Return a checkpoint that shares two of its layer groups with every other one, so that blobs are taken over."""
    source, other = make_checkpoint(0), make_checkpoint(seed)
    return replace(source, groups=[*source.groups[:2], other.groups[2]], files=other.files)


def _settle(url: str, notes: Diary) -> Outcome:
    """Look at what is left, without faults and with everybody dead."""
    registry = Registry(url)
    collect(registry, NOTHING, wait=True, watcher=VirtualTime().watcher())
    outcome = Outcome(notes.count(), [entry["what"] for entry in notes.read("violation")])
    try:
        check_registry(registry)
    except (AssertionError, CorruptBlob) as error:
        outcome.violations.append(f"the registry is damaged: {error}")
    logs: dict[str, dict[int, str | None]] = {
        "published": {version.number: version.snapshot for version in registry.versions(NAME)},
        "moved": {move.sequence: move.snapshot for move in registry.alias_history(NAME, ALIAS)},
    }
    for kind, there in logs.items():
        for number, snapshot in _find_lost(notes.read(kind), there):
            outcome.violations.append(f"{snapshot} was {kind} as {number}, and is not")
    kept = {f"sha256:{name.removesuffix('.json')}" for name in list_names(join_url(url, "manifests"))}
    for entry in notes.read("published"):
        if entry["snapshot"] not in kept and registry.life(entry["snapshot"]) != "swept":
            outcome.violations.append(f"{entry['snapshot']} was published, and is lost")
    for name in list_names(join_url(url, "life")):
        sweeps = [slot for slot in registry.life_log(f"sha256:{name}").read() if slot.record["op"] == "sweep"]
        if len(sweeps) > 1:
            outcome.violations.append(f"{name} was swept {len(sweeps)} times")
    delete(url, recursive=True)  # or the next registry in memory is the slower for it
    return outcome


def _find_lost(entries: Iterator[dict[str, Any]], there: Mapping[int, str | None]) -> Iterator[tuple[int, str]]:
    for entry in entries:
        if there.get(entry["number"]) != entry["snapshot"]:
            yield entry["number"], entry["snapshot"]


def main() -> None:
    """Work until killed."""
    url, diary, seed, rates = sys.argv[1:]
    warnings.simplefilter("ignore", MissingEvent)
    schedule = FaultSchedule(int(seed), json.loads(rates), _DELAY_SECONDS)
    schedule.install()
    _act(url, Diary(Path(diary)), schedule, int(seed), FEW_ACTORS, lambda: False)


if __name__ == "__main__":
    main()
