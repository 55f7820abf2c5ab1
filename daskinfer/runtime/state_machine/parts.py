"""The parts of the state machine."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.runtime.state_machine.faults.microbatch_durations import TaskDurations
from daskinfer.runtime.state_machine.faults.poison_detector import PoisonDetector
from daskinfer.runtime.state_machine.faults.retry_schedule import RetrySchedule
from daskinfer.runtime.state_machine.faults.stragglers import Stragglers
from daskinfer.runtime.state_machine.faults.worker_failures import WorkerFailureHandler
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.partitions.reject_budget import RejectBudget
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.runtime.state_machine.partitions.window import WindowController
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.runtime.state_machine.rollout.rollout import SnapshotRollout
from daskinfer.runtime.state_machine.rules import EarlierWork, RunRules
from daskinfer.runtime.state_machine.workers.assignment import WorkerAssignment
from daskinfer.runtime.state_machine.workers.unassigned_stages import UnassignedStagePolicy


@dataclass(frozen=True, slots=True)
class Parts:
    """Each part alone changes its own state; the others ask it."""

    workers: WorkerAssignment
    unassigned: UnassignedStagePolicy
    partitions: PartitionTracker
    window: WindowController
    budget: RejectBudget
    rollout: SnapshotRollout
    retries: RetrySchedule
    poison: PoisonDetector
    stragglers: Stragglers
    failures: WorkerFailureHandler
    trial: CanaryTrial | None
    claims: ClaimPolicy | None


def make_parts(
    rules: RunRules,
    earlier: EarlierWork,
    tracker: AliasTracker,
    trial: CanaryTrial | None = None,
    claims: ClaimPolicy | None = None,
) -> Parts:
    """Return the parts of a run that begins.

    Parameters
    ----------
    rules
        What it goes by.
    earlier
        What there is already.
    tracker
        What partitions start on; every worker must acknowledge its digest before the first one does.
    trial
        The candidate that is compared, if any.
    claims
        Where the driver is one of several that run the job: what it claims.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> rules = make_rules()
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> parts = make_parts(rules, EarlierWork(partitions=3, committed={0: "sha256:1"}), tracker)
    >>> parts.partitions.left, parts.claims is None
    (2, True)
    """
    limits, committed = rules.limits, earlier.committed
    pins = [tracker.current, *([trial.pin] if trial else [])]
    workers = WorkerAssignment(rules.requirements, [pin.generation for pin in pins])
    if trial is not None:
        partitions = PartitionTracker(rules.plan.window, *trial.places(earlier.partitions, committed))
    else:
        waiting = claims or ((None, number) for number in range(earlier.partitions) if number not in committed)
        partitions = PartitionTracker(rules.plan.window, waiting, earlier.partitions - len(committed))
    retries = RetrySchedule(workers, partitions, limits.paused, limits.storage)
    poison = PoisonDetector(partitions, earlier.poison, limits.hopeless, limits.attempts)
    return Parts(
        workers=workers,
        unassigned=UnassignedStagePolicy(limits.missing, limits.patience),
        partitions=partitions,
        window=WindowController(rules.plan, partitions),
        budget=RejectBudget(limits.rejects, earlier.rejects),
        rollout=SnapshotRollout(tracker, rules.consistency, workers, partitions, earlier, trial),
        retries=retries,
        poison=poison,
        stragglers=Stragglers(workers, partitions, poison, TaskDurations(limits.seconds)),
        failures=WorkerFailureHandler(workers, partitions, poison, retries, limits),
        trial=trial,
        claims=claims,
    )
