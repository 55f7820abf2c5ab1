"""Workers, plans, records and state machines for tests."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

from daskinfer.errors import (
    DaskinferError,
)
from daskinfer.runtime.protocol.actions import (
    Action,
    Fail,
    LoadShard,
)
from daskinfer.runtime.protocol.events import (
    ShardAck,
    ShardLoaded,
)
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rules import EarlierWork, RunRules
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.spec.job.commit import CommitRecord, StageTrail
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.plan import Plan, StagePlan
from daskinfer.spec.recipe.schema import Consistency
from daskinfer.testing.fixtures.plans import make_plan, make_worker

SNAPSHOT, SOURCE = "sha256:weights", "sha256:code"


def make_machine(
    partitions: int = 3,
    committed: Collection[int] | MutableMapping[int, str] = (),
    replicas: tuple[int, ...] = (1, 1),
    window: int = 4,
    limits: Limits | None = None,
    plan: Plan | None = None,
    rules: Consistency | None = None,
    tracker: AliasTracker | None = None,
    epoch: int = 1,
    claims: ClaimPolicy | None = None,
    standby: int = 0,
) -> StateMachine:
    """Return the state machine of a run that begins."""
    plan, rules = plan or make_plan(replicas, window), rules or Consistency()
    found = committed if isinstance(committed, MutableMapping) else dict.fromkeys(committed, SNAPSHOT)
    requirements = WorkerRequirements(plan.stages, plan.replicas, {"GPU": 1}, standby)
    return StateMachine(
        RunRules(plan, rules, SOURCE, epoch, requirements, limits or Limits(rejects=0)),
        EarlierWork(partitions, found),
        tracker or AliasTracker(SnapshotPin(snapshot=SNAPSHOT), rules),
        claims=claims,
    )


def acknowledge(stage: int, worker: str, snapshot: str = SNAPSHOT, source: str = SOURCE) -> ShardLoaded:
    return ShardLoaded(ShardAck(stage, worker, snapshot, source, read_bytes=1, seconds=0.1, device="cpu"))


def make_record(
    partition: int, workers: tuple[str, ...] = ("a", "b"), quarantined: int = 0, epoch: int = 1
) -> CommitRecord:
    trail = tuple(
        StageTrail(stage=stage, microbatches=1, compute=1, receive=0, send=0, workers=(worker,))
        for stage, worker in enumerate(workers)
    )
    return CommitRecord(
        job="job",
        snapshot=SNAPSHOT,
        partition=partition,
        epoch=epoch,
        rows_in=10,
        rows_out=10 - quarantined,
        rows_quarantined=quarantined,
        tokens=1,
        padded_tokens=1,
        microbatches=((1, 1),),
        digest="",
        path="",
        trail=trail,
    )


def start(core: StateMachine) -> list[Action]:
    """Two workers, two stages, both acknowledged; return what the core does then."""
    assert core.start([make_worker("a"), make_worker("b")]) == [LoadShard(0, "a"), LoadShard(1, "b")]
    assert core.handle(acknowledge(0, "a"), 0) == []
    return core.handle(acknowledge(1, "b"), 0)


def only_fail(actions: list[Action]) -> DaskinferError:
    (fail,) = [action for action in actions if isinstance(action, Fail)]
    return fail.error


def make_stages(*sizes: int, offload: int | None = None) -> tuple[StagePlan, ...]:
    return tuple(
        StagePlan(
            index=index,
            first=index,
            last=index + 1,
            parameter_bytes=size,
            share=1 / len(sizes),
            offload="disk" if index == offload else "none",
        )
        for index, size in enumerate(sizes)
    )
