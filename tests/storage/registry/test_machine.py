"""The real code under random interleavings, crashes and pauses: invariants I7, I8 and I10 of the storage protocols.

Jobs, publishers, alias movers and collectors run on memory:// storage and stop before every request, so that any two
requests may come in any order. Time is virtual: it passes while a collector watches, and whoever is neither dead nor
paused beats meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from daskinfer.errors import Conflict, SnapshotGone, StorageError
from daskinfer.knobs import VERDICT_SECONDS
from daskinfer.storage.objects.filesystem import exists, find_files, list_names
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry, explain_loss
from daskinfer.storage.registry.collection import garbage_collection
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.collection.liveness import HolderLiveness
from daskinfer.storage.registry.collection.retention import Retention
from daskinfer.storage.registry.heartbeats import Watcher, beat
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.storage.registry.publishing.publications import list_publications, pulse_url
from daskinfer.storage.registry.publishing.publish import CheckpointSource, publish
from daskinfer.storage.tensors.blobs import read_group
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.fixtures.registries import LAST, VirtualTime, check_registry
from daskinfer.testing.stress.campaigns import campaign_size
from tests.storage.registry.stepping import Actor, install, ungated

TTL = 60
MOST_ACTORS = 4
KINDS = ["job", "job", "job", "publisher", "mover", "collector", "collector"]
NUMBERS = st.integers(0, MOST_ACTORS - 1)
STEPS = st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
LIFE = re.compile(r"(condemn live )*(condemn )?|(condemn live )*condemn sweep (collect\w+ )*")
_numbers = count()


def tune(seed: int, changed: int) -> CheckpointSource:
    """A checkpoint of three layers, the last ones changed."""
    base, other = make_checkpoint(0, rows=1), make_checkpoint(seed, rows=1)
    kept = len(base.groups) - changed
    return replace(base, groups=[*base.groups[:kept], *other.groups[kept:]])


class RegistryMachine(RuleBasedStateMachine):
    """Everybody at one registry."""

    bug = ""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        install(self.patch)
        self.patch.setenv(VERDICT_SECONDS.variable, "0")
        if self.bug:
            BUGS[self.bug](self.patch)
        self.registry = Registry(f"memory://machine-{next(_numbers)}")
        self.now = 0.0
        self.names = count()
        self.actors: list[Actor] = []
        self.jobs: dict[str, str] = {}
        """What each of them holds, or tries to."""
        for seed in (0, 1):
            publish(self.registry, "mini", tune(seed, 1), None)

    # Who comes, and what happens to them

    @precondition(lambda self: sum(not actor.done for actor in self.actors) < MOST_ACTORS)
    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def start(self, data: st.DataObject, kind: str) -> None:
        versions = self.registry.versions("mini")
        number = data.draw(st.integers(1, len(versions)), "version")
        name = f"{kind}-{next(self.names)}"
        actions: dict[str, Callable[[], Callable[[], object]]] = {
            "job": lambda: partial(self.run_job, name, versions[number - 1].snapshot),
            "mover": lambda: partial(set_alias, self.registry, "mini", "prod", f"v{number}"),
            "publisher": lambda: self.draw_publish(data),
            "collector": lambda: self.draw_collection(data),
        }
        self.actors.append(Actor(name, actions[kind]()))

    @rule(data=st.data())
    def publish_undisturbed(self, data: st.DataObject) -> None:
        self.draw_publish(data)()

    @precondition(lambda self: self.free())
    @rule(turns=st.lists(st.tuples(NUMBERS, STEPS), min_size=1, max_size=8))
    def step(self, turns: list[tuple[int, int]]) -> None:
        for number, steps in turns:
            if free := self.free():
                free[number % len(free)].step(steps)

    @precondition(lambda self: self.free())
    @rule(number=NUMBERS, fatal=st.booleans())
    def disturb(self, number: int, fatal: bool) -> None:
        free = self.free()
        actor = free[number % len(free)]
        if fatal:
            actor.kill()
        else:
            actor.pause()

    @precondition(lambda self: any(actor.paused for actor in self.actors))
    @rule(number=NUMBERS)
    def wake(self, number: int) -> None:
        paused = [actor for actor in self.actors if actor.paused]
        paused[number % len(paused)].paused = False

    # What must hold

    @invariant()
    def live_snapshots_are_whole(self) -> None:
        stored = {f"blobs/{name}" for name in find_files(join_url(self.registry.url, "blobs"))}
        for name in list_names(join_url(self.registry.url, "manifests")):
            snapshot = f"sha256:{name.removesuffix('.json')}"
            if self.registry.life(snapshot) != "swept":
                missing = self.registry.manifest(snapshot).blobs.keys() - stored
                assert not missing, f"{snapshot} lacks {missing}"

    @invariant()
    def nobody_met_what_must_not_be(self) -> None:
        for actor in self.actors:
            if actor.error is not None:
                self.judge(actor, actor.error)

    def teardown(self) -> None:
        try:
            for actor in self.actors:
                actor.paused = False
                actor.finish()
            self.nobody_met_what_must_not_be()
            for _ in range(2):
                collect(self.registry, LAST, wait=True, watcher=VirtualTime().watcher())
            check_registry(self.registry)
            self.check_logs()
            self.check_leftovers()
        finally:
            for actor in self.actors:
                if not actor.done:
                    actor.kill()
            self.patch.undo()

    # How

    def free(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.is_free]

    def draw_publish(self, data: st.DataObject) -> Callable[[], object]:
        source = tune(data.draw(st.integers(2, 6), "seed"), data.draw(st.integers(1, 2), "changed"))
        return partial(publish, self.registry, "mini", source, data.draw(st.sampled_from([None, "prod"]), "alias"))

    def draw_collection(self, data: st.DataObject) -> Callable[[], object]:
        retention = Retention(data.draw(st.integers(0, 1), "keep"), 0)
        watcher = Watcher(lambda: self.now, self.sleep)
        return partial(collect, self.registry, retention, wait=data.draw(st.booleans(), "wait"), watcher=watcher)

    def run_job(self, name: str, snapshot: str) -> None:
        self.jobs[name] = snapshot
        try:
            lock = locks.take(self.registry, snapshot, name, ttl_seconds=TTL)
        except SnapshotGone:
            return  # refused
        try:
            for piece in lock.manifest.files:
                self.registry.file(lock.manifest, piece.path)
            for group in lock.manifest.groups:
                with explain_loss(self.registry, snapshot):
                    read_group(self.registry.url, group)
            lock.check()
        finally:
            lock.release()

    def sleep(self, seconds: float) -> None:
        """Time passes; whoever lives and is not paused beats."""
        self.now += max(seconds, 0.001)
        with ungated():
            alive = [actor for actor in self.actors if not (actor.done or actor.paused)]
            for actor in alive:
                if actor.name in self.jobs:
                    self.beat_lock(self.jobs[actor.name], actor.name)
            if any(actor.name.startswith("publisher") for actor in alive):
                for publication in list_publications(self.registry):
                    if publication.state == "begun":
                        beat(pulse_url(self.registry, publication.identity))
            if any(actor.name.startswith(("publisher", "mover", "collector")) for actor in alive):
                for folder in list_names(join_url(self.registry.url, "locks")):
                    for name in list_names(join_url(self.registry.url, "locks", folder)):
                        if name.startswith("alias-") and name.endswith(".json"):
                            self.beat_lock(f"sha256:{folder}", name.removesuffix(".json"))

    def beat_lock(self, snapshot: str, job: str) -> None:
        url = locks.heartbeat_url(self.registry, snapshot, job)
        if exists(f"{url.removesuffix('.hb')}.json"):
            beat(url)

    def judge(self, actor: Actor, error: Exception) -> None:
        """Assert that an error is one that this actor may end with."""
        if actor.name.startswith("job"):
            allowed = isinstance(error, SnapshotGone) and actor.was_paused  # it was silent, and taken for dead
        elif actor.name.startswith(("mover", "publisher")):
            # Of a version that is being deleted, or of an alias that somebody else moved.
            allowed = isinstance(error, SnapshotGone | Conflict)
            allowed |= isinstance(error, StorageError) and "gave it up" in str(error) and actor.was_paused
        else:
            allowed = False
        assert allowed, f"{actor.name} met {type(error).__name__}: {error}"

    def check_leftovers(self) -> None:
        pulses = [name for name in find_files(join_url(self.registry.url, "publish")) if name.endswith(".hb")]
        assert not pulses, pulses
        for snapshot in list_names(join_url(self.registry.url, "locks")):
            held = list_names(join_url(self.registry.url, "locks", snapshot))
            # The dead may seem to hold what a rule keeps; their locks go with it.
            assert not held or self.registry.life(f"sha256:{snapshot}") == "live", held

    def check_logs(self) -> None:
        files = find_files(self.registry.url)
        folders: dict[str, list[int]] = {}
        for name in files:
            if match := re.fullmatch(r"(.+)/(\d{12})\.json", name):
                folders.setdefault(match[1], []).append(int(match[2]))
        for folder, numbers in folders.items():
            assert sorted(numbers) == list(range(len(numbers))), f"{folder} has a gap"
        for folder in folders:
            if not folder.startswith(("life/", "publish/")):
                continue
            records = [slot.record["op"] for slot in SlotLog(join_url(self.registry.url, folder)).read()]
            text = "".join(f"{operation} " for operation in records)
            if folder.startswith("life/"):
                assert LIFE.fullmatch(text), f"{folder}: {text}"
            if folder.startswith("publish/"):
                assert re.fullmatch(r"begin (commit|abort (collect\w+ )*) ?", text), f"{folder}: {text}"


def _forget_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(garbage_collection, "list_holders", lambda registry, snapshot: [])
    patch.setattr(HolderLiveness, "find_living", lambda verdicts, snapshot: [])


class HastyRegistry(Registry):
    """Answers for ever what the first look said."""

    def __init__(self, registry: Registry, snapshot: str) -> None:
        super().__init__(registry.url)
        self.seen = registry.life(snapshot)

    def life(self, snapshot: str) -> str:
        return self.seen


def _check_then_lock(patch: pytest.MonkeyPatch) -> None:
    take = locks.take

    def check_then_lock(registry: Registry, snapshot: str, job: str, **words: Any) -> SnapshotLock:
        if not job.startswith("job-"):
            return take(registry, snapshot, job, **words)
        return replace(take(HastyRegistry(registry, snapshot), snapshot, job, **words), registry=registry)

    patch.setattr(locks, "take", check_then_lock)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gc-without-lock-list": _forget_locks,
    "check-then-lock": _check_then_lock,
}
_QUIET = settings(stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.late
@pytest.mark.timeout(3600)
def test_the_real_code_holds_under_any_interleaving() -> None:
    run_state_machine_as_test(RegistryMachine, settings=settings(_QUIET, max_examples=campaign_size(50, 3000)))


@pytest.mark.late
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bug", ["gc-without-lock-list", pytest.param("check-then-lock", marks=pytest.mark.campaign)])
def test_planted_bugs_are_found(bug: str) -> None:
    # Hypothesis draws constants of whatever modules are imported, so that no seed finds a bug for ever.
    for number in range(12):
        broken = hypothesis.seed(number)(type("BrokenMachine", (RegistryMachine,), {"bug": bug}))
        try:
            run_state_machine_as_test(broken, settings=settings(_QUIET, max_examples=300, phases=[Phase.generate]))
        except AssertionError as error:
            assert re.search(r"met SnapshotGone|lost what it held|lacks|missing", str(error)), error
            return
    pytest.fail("none of 3,600 examples shows the bug")
