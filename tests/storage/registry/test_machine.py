"""The real code under random interleavings, crashes and pauses: invariants I7, I8 and I10 of the storage protocols.

Jobs, publishers, alias movers and collectors run on memory:// storage and stop before every request, so that any two
requests may come in any order. Time is virtual: it passes while a collector watches, and whoever is neither dead nor
paused beats meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from daskinfer.errors import Conflict, SnapshotGone, StorageError
from daskinfer.storage.blobs import read_group
from daskinfer.storage.filesystem import exists, find_files, join_url, list_names
from daskinfer.storage.registry import collection, locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import collect
from daskinfer.storage.registry.heartbeats import Watcher, beat
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.storage.registry.publications import list_publications, pulse_url
from daskinfer.storage.registry.publishing import CheckpointSource, publish
from daskinfer.storage.registry.retention import Retention
from daskinfer.storage.registry.verdicts import Verdicts
from daskinfer.storage.slotlog import SlotLog
from daskinfer.testing.campaigns import campaign_size
from daskinfer.testing.checkpoints import make_checkpoint
from daskinfer.testing.registries import LAST, VirtualTime, check_registry
from tests.storage.registry.stepping import Actor, install, ungated

TTL = 60
MOST_ACTORS = 5
LIFE = re.compile(r"(condemn live )*(condemn )?|(condemn live )*condemn sweep (collect\w+ )*")
_numbers = count()


@dataclass
class JobState:
    """What a job knows."""

    snapshot: str
    held: bool = False
    refused: bool = False
    lost: bool = False


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
        self.patch.setattr(locks, "_VERDICT_SECONDS", 0.0)
        if self.bug:
            BUGS[self.bug](self.patch)
        self.registry = Registry(f"memory://machine-{next(_numbers)}")
        self.now = 0.0
        self.names = count()
        self.actors: list[Actor] = []
        self.jobs: dict[str, JobState] = {}
        for seed in (0, 1):
            publish(self.registry, "mini", tune(seed, 1), None)

    # Who comes

    @precondition(lambda self: self.has_room())
    @rule(version=st.integers(0, 5))
    def start_job(self, version: int) -> None:
        versions = self.registry.versions("mini")
        name = f"job-{next(self.names)}"
        state = self.jobs[name] = JobState(versions[version % len(versions)].snapshot)
        self.add(name, lambda: self.run_job(name, state))

    @precondition(lambda self: self.has_room())
    @rule(seed=st.integers(2, 4), changed=st.integers(1, 2), alias=st.booleans())
    def start_publish(self, seed: int, changed: int, alias: bool) -> None:
        name = f"publisher-{next(self.names)}"
        self.add(name, lambda: publish(self.registry, "mini", tune(seed, changed), "prod" if alias else None))

    @precondition(lambda self: self.has_room())
    @rule(version=st.integers(0, 5))
    def start_move(self, version: int) -> None:
        target = f"v{version % len(self.registry.versions('mini')) + 1}"
        self.add(f"mover-{next(self.names)}", lambda: self.registry.set_alias("mini", "prod", target))

    @precondition(lambda self: self.has_room())
    @rule(keep=st.integers(0, 1), wait=st.booleans())
    def start_collector(self, keep: int, wait: bool) -> None:
        watcher = Watcher(lambda: self.now, self.sleep)
        retention = Retention(keep, 0)
        name = f"collector-{next(self.names)}"
        self.add(name, lambda: collect(self.registry, retention, wait=wait, watcher=watcher))

    # What happens to them

    @precondition(lambda self: self.free())
    @rule(number=st.integers(0, MOST_ACTORS), steps=st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34, 55, 144]))
    def step(self, number: int, steps: int) -> None:
        free = self.free()
        free[number % len(free)].step(steps)

    @precondition(lambda self: self.free())
    @rule(number=st.integers(0, MOST_ACTORS))
    def kill(self, number: int) -> None:
        free = self.free()
        free[number % len(free)].kill()

    @precondition(lambda self: self.free())
    @rule(number=st.integers(0, MOST_ACTORS))
    def pause(self, number: int) -> None:
        free = self.free()
        free[number % len(free)].pause()

    @precondition(lambda self: any(actor.paused for actor in self.actors))
    @rule(number=st.integers(0, MOST_ACTORS))
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
            state = self.jobs.get(actor.name)
            assert state is None or not state.lost or actor.was_paused, f"{actor.name} lost what it held"

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
            left = [name for folder in ("locks", "publish") for name in find_files(join_url(self.registry.url, folder))]
            assert not [name for name in left if name.endswith(".hb")], left
            held = find_files(join_url(self.registry.url, "locks"))
            assert not held, [(name, self.registry.life("sha256:" + name.split("/")[0])) for name in held]
        finally:
            for actor in self.actors:
                if not actor.done:
                    actor.kill()
            self.patch.undo()

    # How

    def has_room(self) -> bool:
        return sum(not actor.done for actor in self.actors) < MOST_ACTORS

    def free(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.is_free]

    def add(self, name: str, action: Callable[[], object]) -> None:
        self.actors.append(Actor(name, action))

    def run_job(self, name: str, state: JobState) -> None:
        try:
            lock = locks.take(self.registry, state.snapshot, name, ttl_seconds=TTL)
        except SnapshotGone:
            state.refused = True
            return
        state.held = True
        try:
            for piece in lock.manifest.files:
                self.registry.file(lock.manifest, piece.path)
            for group in lock.manifest.groups:
                with locks.explain_loss(self.registry, state.snapshot):
                    read_group(self.registry.url, group)
            lock.check()
        except SnapshotGone:
            state.lost = True
        lock.release()

    def sleep(self, seconds: float) -> None:
        """Time passes; whoever lives and is not paused beats."""
        self.now += max(seconds, 0.001)
        with ungated():
            alive = [actor for actor in self.actors if not (actor.done or actor.paused)]
            for actor in alive:
                state = self.jobs.get(actor.name)
                if state is not None:
                    self.beat_lock(state.snapshot, actor.name)
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
        allowed: tuple[type[Exception], ...] = ()
        if actor.name.startswith(("mover", "publisher")):
            # Of a version that is being deleted, or of an alias that somebody else moved.
            allowed = (SnapshotGone, Conflict)
        given_up = isinstance(error, StorageError) and "gave it up" in str(error) and actor.was_paused
        assert isinstance(error, allowed) or given_up, f"{actor.name}: {type(error).__name__}: {error}"

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
    patch.setattr(collection, "list_holders", lambda registry, snapshot: [])
    patch.setattr(Verdicts, "find_living", lambda verdicts, snapshot: [])


def _check_then_lock(patch: pytest.MonkeyPatch) -> None:
    take = locks.take

    def check_then_lock(registry: Registry, snapshot: str, job: str, **words: object) -> SnapshotLock:
        if job.startswith("job-"):
            if registry.life(snapshot) != "live":
                raise SnapshotGone("it is not live")
            with pytest.MonkeyPatch.context() as blind:
                blind.setattr(Registry, "life", lambda registry, snapshot: "live")
                return take(registry, snapshot, job, **words)  # type: ignore[arg-type]
        return take(registry, snapshot, job, **words)  # type: ignore[arg-type]

    patch.setattr(locks, "take", check_then_lock)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gc-without-lock-list": _forget_locks,
    "check-then-lock": _check_then_lock,
}
QUIET = {
    "stateful_step_count": 40,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.timeout(3600)
def test_the_real_code_holds_under_any_interleaving() -> None:
    examples = campaign_size(200, 3000)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RegistryMachine, settings=settings(max_examples=examples, derandomize=examples == 200, **QUIET)
    )


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str) -> None:
    broken = type("BrokenMachine", (RegistryMachine,), {"bug": bug})
    with pytest.raises(AssertionError, match="lost what it held|lacks|missing"):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            broken, settings=settings(max_examples=1000, derandomize=True, phases=[Phase.generate], **QUIET)
        )
