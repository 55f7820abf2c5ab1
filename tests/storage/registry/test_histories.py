"""Random histories of two registries that several people change and sync, against a pure model.

The store answers like an object store: creating is one conditional request, whose acknowledgement may be lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from daskinfer.errors import CheckpointError, Conflict, DaskinferError, SnapshotGone, YankedVersion
from daskinfer.ids import make_nonce
from daskinfer.storage.objects import create_if_absent
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.registry import aliases, yanking
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.registry.syncing import sync
from daskinfer.storage.registry.syncing.merging import Comparison, Side, compare_histories
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.stress.campaigns import campaign_size

pytestmark = pytest.mark.late

Refusal = type[DaskinferError] | None


class ObjectStore(MemoryFileSystem):  # type: ignore[misc]
    """An object store in memory that loses the acknowledgements it is told to lose."""

    protocol = "objects"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    lost: ClassVar[set[int]] = set()
    """Which creations, counted on from now."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("objects://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        super().pipe_file(path, value, **options)
        if mode == "create":
            is_lost = 0 in self.lost
            type(self).lost = {number - 1 for number in self.lost}
            if is_lost:  # the client sent the request again
                raise FileExistsError(path)

    @classmethod
    @contextmanager
    def losing(cls, lost: set[int]) -> Iterator[None]:
        cls.lost = lost
        yield
        cls.lost = set()


@pytest.fixture(autouse=True)
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("objects", ObjectStore, clobber=True)
    monkeypatch.setattr(create_if_absent, "CONDITIONAL_STORES", frozenset({"objects"}))
    yield
    ObjectStore.store.clear()
    ObjectStore.pseudo_dirs[:] = [""]


@dataclass(slots=True)
class AliasModel:
    """Where an alias points, and which moves led there."""

    moves: list[tuple[int, str | None, int | None]] = field(default_factory=list)
    """Of every record: an identity, the target, and which move it restores."""
    known: frozenset[int] = frozenset()
    """Every move that the present target takes into account."""

    @property
    def target(self) -> str | None:
        return self.moves[-1][1] if self.moves else None

    def foresee_rollback(self, to: int | None) -> int | None:
        """Return which move a rollback restores; None where it is refused."""
        if to is not None:
            return to if to < len(self.moves) and self.moves[to][1] is not None else None
        if not self.moves:
            return None
        restored = self.moves[-1][2]
        latest = len(self.moves) - 1 if restored is None else restored
        return next((n for n in range(latest - 1, -1, -1) if self.moves[n][1] not in (None, self.target)), None)


@dataclass(slots=True)
class RegistryModel:
    """What a registry should hold."""

    versions: list[tuple[str, int]] = field(default_factory=list)
    """Snapshot, and the seed that its content comes from."""
    yanks: dict[str, set[int]] = field(default_factory=dict)
    """Snapshot -> its yanks."""
    undone: set[int] = field(default_factory=set)
    aliases: dict[str, AliasModel] = field(default_factory=dict)

    @property
    def snapshots(self) -> list[str]:
        return [snapshot for snapshot, _ in self.versions]

    def is_yanked(self, snapshot: str | None) -> bool:
        return bool(self.yanks.get(str(snapshot), set()) - self.undone)

    def find_equal(self, seed: int) -> str | None:
        """Return the version that publishing this content again leads to."""
        same = [snapshot for snapshot, other in self.versions if other == seed]
        return max(same, key=lambda each: (not self.is_yanked(each), same.index(each)), default=None)

    def foresee(self, state: AliasModel, act: str, target: str | None, expect: int | None) -> Refusal:
        """Return how a move of an alias is refused."""
        if target is None and (act != "unset" or state.target is None):
            return CheckpointError
        if self.is_yanked(target):
            return YankedVersion
        if target is not None and target not in self.snapshots:  # a sync brought the move and not what it led to
            return SnapshotGone
        return Conflict if expect not in (None, len(state.moves)) else None


def attempt(act: Callable[[], object]) -> Refusal:
    """Return how an act was refused; None where it was done."""
    try:
        act()
    except (CheckpointError, Conflict, SnapshotGone) as error:
        return type(error)
    return None


SIDES = st.sampled_from((0, 1))
ALIASES = st.sampled_from(("prod", "canary"))
WRITERS = st.integers(0, 2)
PICKS = st.integers(0, 9)
LOST = st.sets(st.integers(0, 12), max_size=3)


class Histories(RuleBasedStateMachine):
    """Whatever people do to two registries, in whatever order, with whatever acknowledgements lost."""

    @initialize()
    def begin(self) -> None:
        self.registries = [Registry(f"objects://{make_nonce()}") for _ in range(2)]
        self.models = [RegistryModel() for _ in range(2)]
        self.identities = itertools.count()
        self.seen: dict[tuple[int, str, int], int] = {}
        self.stored: dict[str, bytes] = {}
        self.publish(0, 0, "prod", set())
        self.publish(0, 1, "canary", set())
        self.sync(0, "all", 0, None, set())

    @rule(side=SIDES, seed=st.integers(0, 3), alias=st.none() | ALIASES, lost=LOST)
    def publish(self, side: int, seed: int, alias: str | None, lost: set[int]) -> None:
        registry, model = self.registries[side], self.models[side]
        act = partial(publish, registry, "mini", make_checkpoint(seed, ("layer",), rows=1), alias)
        snapshot = model.find_equal(seed)
        refusal = YankedVersion if model.is_yanked(snapshot) else None
        with ObjectStore.losing(lost):
            assert attempt(act) == refusal
        if refusal is not None:
            return
        if snapshot is None:
            snapshot = registry.versions("mini")[-1].snapshot
            model.versions.append((snapshot, seed))
        if alias is not None:
            state = model.aliases.setdefault(alias, AliasModel())
            if state.target != snapshot:
                self.move(state, snapshot)

    @rule(side=SIDES, pick=PICKS, lost=LOST)
    def yank_or_unyank(self, side: int, pick: int, lost: set[int]) -> None:
        registry, model = self.registries[side], self.models[side]
        if not model.versions:
            return
        number = pick % len(model.versions)
        snapshot = model.snapshots[number]
        is_yanked = model.is_yanked(snapshot)
        with ObjectStore.losing(lost):
            (yanking.unyank if is_yanked else yanking.yank)(registry, "mini", f"v{number + 1}")
        if is_yanked:
            model.undone |= model.yanks[snapshot]
        else:
            model.yanks.setdefault(snapshot, set()).add(next(self.identities))

    @rule(side=SIDES, alias=ALIASES, writer=WRITERS)
    def look(self, side: int, alias: str, writer: int) -> None:
        head = self.registries[side].alias_log("mini", alias).head()
        self.seen[side, alias, writer] = -1 if head is None else head.sequence

    @rule(
        side=SIDES,
        alias=ALIASES,
        writer=WRITERS,
        act=st.sampled_from(("set", "set", "unset", "rollback", "rollback to")),
        pick=PICKS,
        careful=st.booleans(),
        lost=LOST,
    )
    def move_alias(
        self, side: int, alias: str, writer: int, act: str, pick: int, careful: bool, lost: set[int]
    ) -> None:
        """A careful writer moves the alias only from where it last saw it."""
        registry, model = self.registries[side], self.models[side]
        if not model.versions:
            return
        state = model.aliases.get(alias, AliasModel())
        expect = self.seen.get((side, alias, writer), -1) + 1 if careful else None
        target = restores = None
        if act == "set":
            target = model.snapshots[pick % len(model.versions)]
            do = partial(set_alias, registry, "mini", alias, target, expect=expect)
        elif act == "unset":
            do = partial(aliases.unset_alias, registry, "mini", alias, expect=expect)
        else:
            to = pick % (len(state.moves) + 1) if act == "rollback to" else None
            restores = state.foresee_rollback(to)
            target = None if restores is None else state.moves[restores][1]
            do = partial(aliases.roll_back, registry, "mini", alias, to=to, expect=expect)
        refusal = model.foresee(state, act, target, expect)
        with ObjectStore.losing(lost):
            assert attempt(do) == refusal
        if refusal is None:
            self.move(model.aliases.setdefault(alias, state), target, restores)
            self.seen[side, alias, writer] = len(state.moves) - 1

    def move(self, state: AliasModel, target: str | None, restores: int | None = None) -> None:
        state.moves.append((next(self.identities), target, restores))
        state.known |= {state.moves[-1][0]}

    @rule(
        source=SIDES,
        scope=st.sampled_from(("all", "all", "mini", "version", "prod")),
        pick=PICKS,
        keep=st.sampled_from((None, None, "source", "target")),
        lost=LOST,
    )
    def sync(self, source: int, scope: str, pick: int, keep: Side | None, lost: set[int]) -> None:
        ours, theirs = self.models[source], self.models[1 - source]
        if not ours.versions:
            return
        references: tuple[str, ...] = () if scope == "all" else ("mini",)
        chosen, names = ours.snapshots, sorted(ours.aliases)
        if scope == "version":
            number = pick % len(chosen)
            chosen, names, references = [chosen[number]], [], (f"mini@v{number + 1}",)
        elif scope == "prod":
            target = ours.aliases.get("prod", AliasModel()).target
            if target is None:
                return
            chosen, names, references = [target], ["prod"], ("mini@prod",)
        resolve = {f"mini@{name}": keep for name in names} if keep else {}
        with ObjectStore.losing(lost):
            found = sync.sync(self.registries[source], self.registries[1 - source], references, resolve=resolve)
        for snapshot, seed in ours.versions:
            if snapshot in chosen:
                if snapshot not in theirs.snapshots:
                    theirs.versions.append((snapshot, seed))
                theirs.yanks.setdefault(snapshot, set()).update(ours.yanks.get(snapshot, ()))
                theirs.undone |= ours.undone & theirs.yanks[snapshot]
        outcomes = {name: self.bring(ours.aliases[name], theirs, name, keep) for name in names}
        assert {each.alias: each.outcome for each in found.aliases} == outcomes
        assert found.clean == {"conflict", "blocked"}.isdisjoint(outcomes.values())

    def bring(self, ours: AliasModel, registry: RegistryModel, name: str, keep: Side | None) -> str:
        """Do what a sync must do to an alias, told by which moves each side knows of."""
        theirs = registry.aliases.get(name, AliasModel())
        if ours.known <= theirs.known:
            return "equal" if ours.known == theirs.known else "ahead"
        is_behind = theirs.known <= ours.known
        if is_behind and theirs.moves == ours.moves[: len(theirs.moves)]:
            registry.aliases[name] = AliasModel(list(ours.moves), ours.known)
            return "forward"
        if not is_behind and keep is None:
            return "conflict"
        target = theirs.target if keep == "target" and not is_behind else ours.target
        if registry.is_yanked(target):
            return "blocked"
        known = theirs.known
        self.move(theirs, target)
        if is_behind or keep == "source":  # what only the target knew counts no more
            theirs.known = ours.known
        else:
            theirs.known |= ours.known | known
        return "adopt" if is_behind else "merged"

    @invariant()
    def names_mean_what_the_model_says(self) -> None:
        for registry, model in zip(self.registries, self.models, strict=True):
            found = registry.versions("mini")
            assert [each.snapshot for each in found] == model.snapshots
            assert [each.yanked is not None for each in found] == list(map(model.is_yanked, model.snapshots))
            latest = next((each for each in reversed(model.snapshots) if not model.is_yanked(each)), None)
            if found:
                self.check(registry, "mini", latest)
            assert registry.alias_names("mini") == sorted(model.aliases)
            for name, state in model.aliases.items():
                history = [slot.record for slot in registry.alias_log("mini", name).read()]
                assert [(move["snapshot"], move.get("restores")) for move in history] == [
                    (target, restores) for _, target, restores in state.moves
                ]
                if state.target is not None:
                    self.check(registry, f"mini@{name}", None if model.is_yanked(state.target) else state.target)

    @staticmethod
    def check(registry: Registry, reference: str, snapshot: str | None) -> None:
        found: list[str] = []
        refusal = attempt(lambda: found.append(registry.resolve(reference).snapshot))
        assert (found, refusal) == (([], YankedVersion) if snapshot is None else ([snapshot], None))

    @invariant()
    def what_is_written_stays(self) -> None:
        kinds = ("blobs", "manifests", "models")
        stored = {path: file.getvalue() for path, file in ObjectStore.store.items() if path.split("/")[2] in kinds}
        assert self.stored.items() <= stored.items()
        self.stored = stored

    def teardown(self) -> None:
        ObjectStore.store.clear()
        ObjectStore.pseudo_dirs[:] = [""]


def explore(examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


@pytest.mark.timeout(campaign_size(600, 3600))
def test_histories_of_two_registries() -> None:
    explore(campaign_size(50, 3000))


def find_mistake(*errors: type[Exception]) -> None:
    with pytest.raises((AssertionError, ExceptionGroup, *errors)):
        explore(500, database=None, derandomize=True, phases=[Phase.generate])


def test_a_last_writer_who_wins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = authorised_writes.append

    def ignore_others(decision: Decision, log: SlotLog, record: dict[str, Any], expect: int | None = None) -> Slot:
        return append(decision, log, record, None if decision.action == "alias" else expect)

    monkeypatch.setattr(authorised_writes, "append", ignore_others)
    find_mistake()


def test_a_sync_that_takes_the_source_blindly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_it(source: list[bytes], target: list[bytes]) -> Comparison:
        found = compare_histories(source, target)
        return Comparison("adopt") if found.course == "conflict" else found

    monkeypatch.setattr(sync, "compare_histories", take_it)
    find_mistake()


def test_an_acknowledgement_that_stays_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_if_absent, "_compare", lambda *arguments: False)
    find_mistake(Conflict)
