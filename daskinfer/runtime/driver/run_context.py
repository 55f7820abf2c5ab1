"""What every part of a driver shares, and nobody changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distributed import Client

from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.cluster.admission import Admission
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.protocol.events import Event
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.plan import Plan
from daskinfer.spec.recipe.schema import Recovery
from daskinfer.spec.rows import PartitionTable

Tell = Callable[[Callable[[], Event | None]], None]
"""Takes a function that gives the event, or raises what ends the run."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """One job on one cluster."""

    client: Client
    """Connected to a cluster whose processes are set up."""
    admission: Admission
    """Which of its workers can be used."""
    handle: JobHandle
    """The job, and the snapshot that it starts on."""
    table: PartitionTable
    """Its partitions."""
    requires: dict[str, float]
    """Tags that stage tasks ask for beside their own."""
    recovery: Recovery
    """How long failures may last."""
    snapshots: SnapshotManager
    """Holds its snapshots."""
    progress: RunProgress
    """Sums for progress and report."""

    @property
    def plan(self) -> Plan:
        """Its stages."""
        return self.progress.plan
