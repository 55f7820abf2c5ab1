"""One of the drivers that share a simulated job, with a cluster of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.protocol.actions import ClaimBlocks, Commit, Fail, LoadShard, Release, Seal
from daskinfer.runtime.protocol.events import Event, ShardAck, ShardLoaded
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.storage.outputs.sink import Written
from tests.support.factories import SOURCE
from tests.support.simulatedcluster import SimulatedCluster

if TYPE_CHECKING:
    from tests.runtime.joinworld import JoinWorld


@dataclass
class Task:
    """An attempt to commit a partition, step by step."""

    handle: JobHandle
    partition: int
    step: str = "confirm"
    written: Written | None = None


class JoinMember(SimulatedCluster):
    """One member, with the cluster that it computes on.

    Parameters
    ----------
    world
        Storage, and everybody else.
    machine
        Its decisions.
    handle
        Of the job, as its tasks have it.
    claimer
        Its claims.
    """

    def __init__(self, world: JoinWorld, machine: StateMachine, handle: JobHandle, claimer: ClaimStore) -> None:
        super().__init__(machine, world.chooser, world.sizes)
        self.world = world
        self.handle = handle
        self.claimer = claimer
        self.counter = 0
        self.rows = 0
        self.is_paused = False
        self.ended = ""
        self._performers[ClaimBlocks] = self.todo_later

    def tell(self, event: Event) -> None:
        if not self.ended:
            self.now = self.world.now
            super().tell(event)

    def happen(self, thing: Any) -> None:
        if isinstance(thing, ClaimBlocks):
            self.world.claim(self, thing)
        elif isinstance(thing, Task):
            self.world.go_on(self, thing)
        else:
            super().happen(thing)

    def load(self, action: LoadShard) -> None:
        snapshot = self.handle.pin.snapshot
        self.todo.append(ShardLoaded(ShardAck(action.stage, action.worker, snapshot, SOURCE, 1, 0.1, "cpu")))

    def commit(self, action: Commit) -> None:
        self.todo.append(Task(self.handle, action.partition))

    def release(self, action: Release) -> None:
        """Let go of a partition; its commit may run on."""
        super().release(action)
        gone = [thing for thing in self.todo if isinstance(thing, Task) and thing.partition == action.partition]
        self.todo = [thing for thing in self.todo if thing not in gone]
        self.world.zombies += gone

    def todo_later(self, action: ClaimBlocks) -> None:
        self.todo.append(action)

    def fail(self, action: Fail) -> None:
        raise self.world.violation(f"a member fails: {action.error}")

    def seal(self, action: Seal) -> None:
        super().seal(action)
        self.ended = "sealed"
        if self.rows != len(self.sizes):
            raise self.world.violation(f"a member has counted {self.rows} of {len(self.sizes)} rows")
        self.world.output.seal({})  # refuses what has a hole
