"""The protocol of locks, garbage collection, publishing and syncing as a pure transition system, and its explorer.

One registry. Snapshot A names the blobs x and y; a job uses it, a publish takes x over into M, a sync brings in D, which
names x too, as it does where it comes from. Every step is one request to the store; any two steps of different actors may
come in any order, and every actor may die between two of its own. Clocks do not exist.

Where `suspicious` is set, whoever is silent may be taken for dead at any moment although it lives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NAMES = {"A": frozenset("xy"), "M": frozenset("xz"), "D": frozenset("xw")}
"""What each manifest names."""
MADE_BY = {"publish": "M", "sync": "D", "sync2": "D"}
"""What each kind of publish log makes; the log of a sync says so from the beginning."""
STORED_BY = {"publish": frozenset("z"), "sync": NAMES["D"], "sync2": NAMES["D"]}
"""What goes when it is given up, unless somebody needs it."""

DEAD = ("dead",)
END = ("end",)
NONE: frozenset[str] = frozenset()


class Log(NamedTuple):
    """A life or a publish log: its head, how long it is, and the marks of collectors."""

    head: str = ""
    length: int = 0
    open: frozenset[str] = NONE
    marked: bool = False

    def append(self, record: str) -> Log:
        return self._replace(head=record, length=self.length + 1)

    def begin(self, collector: str) -> Log:
        return self._replace(open=self.open | {collector}, marked=True)

    def end(self, collector: str) -> Log:
        return self._replace(open=self.open - {collector})

    @property
    def unsettled(self) -> bool:
        """Whether somebody may be deleting, or about to."""
        return bool(self.open) or not self.marked


class World(NamedTuple):
    """The store."""

    life: Log = Log()
    locks: frozenset[str] = NONE
    alias: bool = False
    blobs: frozenset[str] = frozenset("xy")
    manifests: frozenset[str] = frozenset("A")
    publish: Log = Log()
    sync: Log = Log()
    sync2: Log = Log()


Local = tuple[Any, ...]
"""Where an actor is, and what it remembers."""
State = tuple[World, tuple[Local, ...]]
Step = tuple[str, World, Local]


class Violation(Exception):
    """Something happened that must not."""


@dataclass(frozen=True)
class Actor:
    """Somebody who works with the registry; `bug` names what it does wrong."""

    name: str
    bug: str = ""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        """Yield what it may do next: a label, the store afterwards, and where it is then."""
        raise NotImplementedError


class Job(Actor):
    """Locks A, makes sure that it lives, reads it, lets go."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        order = ("check", "lock", "x") if self.bug == "check-then-lock" else ("lock", "check", "x")
        at = order[0] if local[0] == "start" else local[0]
        after = order[(order.index(str(at)) + 1) % 3] if at in order[:2] else ""
        if at == "lock":
            yield "locks", world._replace(locks=world.locks | {self.name}), (after,)
        elif at == "check" and world.life.head in ("", "live"):
            yield "sees it live", world, (after,)
        elif at == "check":
            yield "gives up", world._replace(locks=world.locks - {self.name}), END
        elif at in ("x", "y"):
            if at not in world.blobs:
                if not (model.suspicious and world.life.head == "sweep"):
                    raise Violation(f"{self.name} misses {at}")
                yield "stops: the snapshot is gone", world._replace(locks=world.locks - {self.name}), END
            else:
                yield f"reads {at}", world, ("y",) if at == "x" else ("release",)
        elif at == "release":
            yield "releases", world._replace(locks=world.locks - {self.name}), END


class Mover(Actor):
    """Points an alias at A, under a lock."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        match local[0]:
            case "start":
                yield "locks", world._replace(locks=world.locks | {self.name}), ("check",)
            case "check" if world.life.head in ("", "live"):
                yield "sees it live", world, ("move",)
            case "check":
                yield "gives up", world._replace(locks=world.locks - {self.name}), END
            case "move":
                yield "moves the alias", world._replace(alias=True), ("release",)
            case "release":
                yield "releases", world._replace(locks=world.locks - {self.name}), END


class Publisher(Actor):
    """Publishes M, which takes x over from A."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        unlocked = world._replace(locks=world.locks - {self.name})
        match local[0]:
            case "start":
                after = ("take",) if self.bug == "dedupe-without-base-lock" else ("lock",)
                yield "begins", world._replace(publish=world.publish.append("begin")), after
            case "lock":
                yield "locks its base", world._replace(locks=world.locks | {self.name}), ("check",)
            case "check" if world.life.head in ("", "live"):
                yield "sees it live", world, ("take",)
            case "check":
                yield "does without a base", unlocked, END
            case "take" if "x" in world.blobs:
                yield "takes x over", world, ("store",)
            case "take":
                yield "does without a base", unlocked, END
            case "store":
                yield "stores z", world._replace(blobs=world.blobs | {"z"}), ("commit",)
            case "commit" if world.publish.head == "begin":
                yield "commits", world._replace(publish=world.publish.append("commit")), ("manifest",)
            case "commit":
                yield "was given up", unlocked._replace(blobs=world.blobs - {"z"}), END
            case "manifest":
                yield "writes the manifest", world._replace(manifests=world.manifests | {"M"}), ("done",)
            case "done":
                yield "is done", world._replace(publish=world.publish._replace(head="done")), ("release",)
            case "release":
                yield "releases", unlocked, END


class Syncer(Actor):
    """Brings D in, under the blob names that it has elsewhere; its own name is that of its log."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        log: Log = getattr(world, self.name)
        match local[0]:
            case "start":
                after = ("w",) if self.bug == "sync-does-not-look" else ("look",)
                yield "begins with its manifest", put(world, self.name, log.append("begin")), after
            case "look":
                if world.life.head == "sweep" and world.life.unsettled:
                    return  # waits
                others = (getattr(world, name) for name in MADE_BY if name != self.name)
                if any(other.head == "abort" and other.unsettled for other in others):
                    return
                yield "sees nobody delete", world, ("w",)
            case "w":
                yield "creates w", world._replace(blobs=world.blobs | {"w"}), ("x",)
            case "x":
                yield "creates or finds x", world._replace(blobs=world.blobs | {"x"}), ("commit",)
            case "commit" if log.head == "begin":
                yield "commits", put(world, self.name, log.append("commit")), ("manifest",)
            case "commit":
                yield "was given up", world, END
            case "manifest":
                yield "writes the manifest", world._replace(manifests=world.manifests | {"D"}), ("done",)
            case "done":
                yield "is done", put(world, self.name, log._replace(head="done")), END


class Collector(Actor):
    """Deletes A unless something keeps it."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        life = world.life
        early = self.bug == "references-before-sweep"
        match local:
            case ("start",) if life.head == "sweep":
                yield "finds it swept", world, ("mark",)
            case ("start",) if life.head == "condemn":
                yield "finds it condemned", world, ("list", life.length)
            case ("start",):
                yield "looks", world, ("condemn", life.length)
            case ("condemn", length) if life.length == length:
                after = ("early-publishes", length + 1) if early else ("list", length + 1)
                yield "condemns", world._replace(life=life.append("condemn")), after
            case ("condemn", _):
                yield "was too late", world, END
            case ("early-publishes", length):
                yield "lists publishes", world, ("early-manifests", length, needed_by_publishes(world))
            case ("early-manifests", length, needed):
                yield "lists manifests", world, ("list", length, needed | needed_by_manifests(world, condemned=True))
            case ("list", length, *rest):
                alive = any(model.seems_alive(world, name, locals_) for name in world.locks)
                found = alive and self.bug != "gc-without-lock-list"
                if found and model.suspicious:
                    yield "takes the silent for dead", world, ("aliases", length, model.holds(world), *rest)
                yield "lists locks", world, ("aliases", length, found, *rest)
            case ("aliases", length, found, *rest):
                yield "lists aliases", world, ("decide", length, found or world.alias, *rest)
            case ("decide", length, found, *rest) if life.length == length:
                verdict = "live" if found else "sweep"
                after = END if found else ("mark", *rest)
                yield f"decides: {verdict}", world._replace(life=life.append(verdict)), after
            case ("decide", *_):
                yield "was too late", world, (("mark",) if life.head == "sweep" else END)
            case ("mark", needed):
                yield "marks", world._replace(life=life.begin(self.name)), ("delete", needed, ("x", "y"))
            case ("mark",):
                yield "marks", world._replace(life=life.begin(self.name)), ("publishes",)
            case ("publishes",):
                yield "lists publishes", world, ("manifests", needed_by_publishes(world))
            case ("manifests", needed):
                yield "lists manifests", world, ("delete", needed | needed_by_manifests(world), ("x", "y"))
            case ("delete", needed, (blob, *others)):
                left = world.blobs if blob in needed else world.blobs - {blob}
                yield f"deletes {blob} if it may", world._replace(blobs=left), ("delete", needed, tuple(others))
            case ("delete", _, ()):
                yield "deletes the manifest", world._replace(manifests=world.manifests - {"A"}), ("close",)
            case ("close",):
                yield "closes its mark", world._replace(life=life.end(self.name)), END


class Reaper(Actor):
    """Finishes a publish that was committed, or gives it up; its name is `reaper of LOG`."""

    def steps(self, world: World, local: Local, model: Model, locals_: tuple[Local, ...]) -> Iterator[Step]:
        target = self.name.rpartition(" ")[2]
        log: Log = getattr(world, target)
        match local:
            case ("start",) if log.head == "commit":
                made = world.manifests | {MADE_BY[target]}
                yield "finishes it", world._replace(manifests=made), ("done",)
            case ("start",) if log.head == "begin" and (model.suspicious or model.is_dead(target, locals_)):
                yield "gives it up", put(world, target, log.append("abort")), ("mark",)
            case ("start",) if log.head == "abort":
                yield "finds it given up", world, ("mark",)
            case ("done",):
                yield "marks it done", put(world, target, log._replace(head="done")), END
            case ("mark",):
                yield "marks", put(world, target, log.begin(self.name)), ("publishes",)
            case ("publishes",):
                yield "lists publishes", world, ("manifests", needed_by_publishes(world))
            case ("manifests", needed):
                doomed = STORED_BY[target] - (needed | needed_by_manifests(world))
                yield "lists manifests", world, ("delete", doomed)
            case ("delete", doomed):
                yield "deletes what is left", world._replace(blobs=world.blobs - doomed), ("close",)
            case ("close",):
                yield "closes its mark", put(world, target, log.end(self.name)), END


def put(world: World, name: str, log: Log) -> World:
    """Return the world with another log of this name."""
    change: dict[str, Any] = {name: log}
    return world._replace(**change)


def needed_by_publishes(world: World) -> frozenset[str]:
    """Blobs of what is committed and not done, and of syncs that have begun."""
    needed = NONE
    for name, made in MADE_BY.items():
        log: Log = getattr(world, name)
        if log.head == "commit" or (log.head == "begin" and name != "publish"):
            needed |= NAMES[made]
    return needed


def needed_by_manifests(world: World, condemned: bool = False) -> frozenset[str]:
    """Blobs of the manifests of snapshots that are not swept, or not even condemned."""
    gone = world.life.head in (("sweep", "condemn") if condemned else ("sweep",))
    needed = NONE
    for name in world.manifests:
        if not (name == "A" and gone):
            needed |= NAMES[name]
    return needed


@dataclass(frozen=True)
class Model:
    """Who works with the registry, and whether the living may be taken for dead."""

    actors: tuple[Actor, ...]
    suspicious: bool = False
    base_locks_expire: bool = False
    """A planted bug: the lock on a base is judged by its heartbeat, not by the publish's log."""
    index: dict[str, int] = field(init=False, default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self.index.update({actor.name: number for number, actor in enumerate(self.actors)})

    def start(self) -> State:
        return World(), (("start",),) * len(self.actors)

    def is_dead(self, name: str, locals_: tuple[Local, ...]) -> bool:
        """Who is dead is silent; the living may be called so only where the model is suspicious."""
        number = self.index["publisher" if name == "publish" else name]
        return locals_[number] == DEAD

    def seems_alive(self, world: World, name: str, locals_: tuple[Local, ...]) -> bool:
        if name == "publisher" and not self.base_locks_expire:
            return world.publish.head == "begin"
        return not self.is_dead(name, locals_)

    def holds(self, world: World) -> bool:
        """Whether a lock is held that no suspicion breaks: that on the base of a publish which may commit."""
        return "publisher" in world.locks and not self.base_locks_expire and world.publish.head == "begin"

    def moves(self, state: State) -> Iterator[tuple[str, State]]:
        world, locals_ = state
        for number, (actor, local) in enumerate(zip(self.actors, locals_, strict=True)):
            if local in (DEAD, END):
                continue
            before, after = locals_[:number], locals_[number + 1 :]
            for label, changed, where in actor.steps(world, local, self, locals_):
                yield f"{actor.name} {label}", (changed, (*before, where, *after))
            if local != ("start",):
                yield f"{actor.name} dies", (world, (*before, DEAD, *after))

    def check(self, state: State) -> None:
        world, _ = state
        for name in world.manifests:
            if not (name == "A" and world.life.head == "sweep") and not NAMES[name] <= world.blobs:
                raise Violation(f"manifest {name} dangles: it lacks {sorted(NAMES[name] - world.blobs)}")
        for name, made in MADE_BY.items():
            if getattr(world, name).head == "commit" and not NAMES[made] <= world.blobs:
                raise Violation(f"{name} is committed and lacks {sorted(NAMES[made] - world.blobs)}")
        if world.alias and world.life.head == "sweep" and not self.suspicious:
            raise Violation("the alias points at a deleted snapshot")


def explore(model: Model) -> int:
    """Visit every state that can be reached, breadth first; return how many there are.

    Raises
    ------
    Violation
        With the shortest way there.
    """
    start = model.start()
    came: dict[State, tuple[State, str] | None] = {start: None}
    waiting = deque([start])
    at = start
    try:
        while waiting:
            state = at = waiting.popleft()
            for label, reached in model.moves(state):
                if reached not in came:
                    came[reached] = (state, label)
                    at = reached
                    model.check(reached)
                    waiting.append(reached)
                at = state
    except Violation as violation:
        raise Violation("\n".join([*_trace(came, at), f"=> {violation}"])) from None
    return len(came)


def _trace(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps: list[str] = []
    while (step := came[state]) is not None:
        state, label = step
        steps.append(label)
    return steps[::-1]
