"""What a run computes and where it puts it, as its session sees it: all that tells a whole job from a retry."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.run_reporter import RunReporter
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.recipe.schema import Consistency, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs.lease import Lease
from daskinfer.storage.jobs.membership import Membership
from daskinfer.storage.objects.backoff import outlast

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that this driver runs."""

    job: OpenedJob
    recipe: Recipe
    """As it is now: cluster, placement and error budget may differ from the job's record."""
    lease: Lease | Membership
    reporter: RunReporter
    """Tells others how the run stands."""

    @property
    def record(self) -> JobRecord:
        """The job's record."""
        return self.job.record

    @property
    def epoch(self) -> int:
        """Number of this driver among those that ran the job."""
        return self.lease.epoch

    @property
    def member(self) -> str:
        """Its id among those who run the job together; empty where it runs it alone."""
        return self.lease.member

    def outlast(self, call: Callable[[], T]) -> T:
        """Do something in storage that may be repeated, though the store refuses for a while."""
        patience = self.recipe.recovery.storage
        return outlast(call, patience, lambda error: self.reporter.note("storage-refused", error.message))


@dataclass(frozen=True, slots=True)
class Share:
    """Partitions that are computed by one state machine."""

    pin: SnapshotPin
    """The snapshot to begin with."""
    committed: MutableMapping[int, str]
    """Partition -> snapshot, of all that are not to be computed."""
    trial: CanaryTrial | None = None
    is_last: bool = True
    """Whether nothing is left once these are committed."""


class Work(Protocol):
    """What a run computes."""

    snapshots: SnapshotManager
    """Holds the locks; there once the work has begun."""

    @property
    def progress(self) -> RunProgress:
        """What is done so far."""

    @property
    def rules(self) -> Consistency:
        """Which snapshots the partitions may be computed on."""

    @property
    def needs_retry(self) -> bool:
        """Whether only a retry goes on with the job, since its input was corrected or its output is whole."""

    def limits(self, recipe: Recipe) -> Limits:
        """Return how much may go wrong."""

    def table(self) -> PartitionTable:
        """Return the input that rows are read from."""

    def begin(self, held: HeldJob) -> None:
        """Prepare the output, under the lease and before the first task, so that nothing of the job can be lost."""

    def next_share(self, connection: int) -> Share | None:
        """Return what is to be computed over a connection to a cluster; None where nothing is left."""

    def finish(self) -> None:
        """Put together what was committed, and let go of the snapshots."""
