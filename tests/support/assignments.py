"""A assigned to try things on."""

from __future__ import annotations

from daskinfer.runtime.protocol.actions import Action, IncidentRecord, LoadShard, ReleaseShard
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.runtime.state_machine.workers.placement_policy import RESTART_SECONDS
from daskinfer.spec.plan import WorkerShape
from tests.support.factories import make_stages

MEMORY = 100
LATER = RESTART_SECONDS + 1


def make_worker(address: str, memory: int = MEMORY, name: str = "") -> WorkerShape:
    return WorkerShape(address=address, threads=1, memory=memory, resources={"GPU": 1}, name=name)


def make_assignment(
    *sizes: int, replicas: tuple[int, ...] | None = None, standby: int = 0, drained: str = ""
) -> WorkerAssignment:
    stages = make_stages(*(sizes or (30, 30)))
    wanted = WorkerRequirements(stages, replicas or (1,) * len(stages), {"GPU": 1}, standby, drained=frozenset(drained))
    return WorkerAssignment(wanted)


def orders(actions: list[Action]) -> list[Action]:
    """Leave out what is only said."""
    return [action for action in actions if not isinstance(action, IncidentRecord)]


def kinds(actions: list[Action]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, IncidentRecord)]


def begin(assigned: WorkerAssignment, *addresses: str) -> None:
    """Let workers join and load whatever they are asked to."""
    obey(assigned, assigned.enlist(map(make_worker, addresses)), 0)


def obey(assigned: WorkerAssignment, actions: list[Action], now: float) -> list[Action]:
    """Load and stand down as asked, until nothing more is asked; return all that was asked."""
    asked = list(actions)
    for action in asked:
        match action:
            case LoadShard(stage, worker, generation):
                asked += assigned.acknowledge(generation, stage, worker, now)
            case ReleaseShard(worker, stage):
                asked += assigned.stood_down(worker, stage, now)
    return asked


def does(assigned: WorkerAssignment) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return {state.worker: (state.does, state.stages, state.warm) for state in assigned.roster()}
