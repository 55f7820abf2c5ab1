"""From what happens in a run to the sums of its progress."""

from __future__ import annotations

from daskinfer.runtime.driver.observer import RunObserver
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.protocol.actions import Action, LoadShard, Release, Retire
from daskinfer.runtime.protocol.events import (
    BlocksClaimed,
    Committed,
    Event,
    MicrobatchDone,
    Prepared,
    ShardFailed,
    ShardLoaded,
    ShardReleased,
    WorkerFrozen,
    WorkerLost,
)
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.rows import PartitionTable


class ProgressCounter(RunObserver):
    """Counts what is computed and committed, but for what is only compared.

    Parameters
    ----------
    progress
        The sums.
    machine
        Knows what is only compared, and whose a commit is.
    table
        Rows of the partitions.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> progress = RunProgress(make_plan(), rows_total=10)
    >>> counter = ProgressCounter(progress, machine=None, table=None)
    >>> counter.on_action(LoadShard(stage=0, worker="tcp://a:1"))
    >>> progress.loads.total_shards
    1
    """

    def __init__(self, progress: RunProgress, machine: StateMachine, table: PartitionTable) -> None:
        self._progress = progress
        self._machine = machine
        self._table = table

    def on_event(self, event: Event) -> None:
        """Count what happened."""
        progress, machine = self._progress, self._machine
        match event:
            case Prepared() if not machine.is_on_trial(event.generation):
                rows = progress.rows_of(event.partition, self._table.partitions[event.partition].rows)
                progress.advance.begin((event.generation, event.partition), rows, event.microbatches)
            case MicrobatchDone():
                progress.advance.step((event.generation, event.partition))
            case ShardLoaded():
                progress.add_ack(event.ack)
            case Committed() if not machine.is_on_trial(event.generation):
                progress.add(event.record, machine.is_ours(event.record))
            case BlocksClaimed() if machine.claims is not None:
                for record in machine.claims.find_new(event):
                    progress.add(record, machine.is_ours(record))
            case WorkerLost() | WorkerFrozen():
                progress.loads.drop(event.worker)
            case ShardFailed() | ShardReleased():
                progress.loads.drop(event.worker, event.stage)

    def on_action(self, action: Action) -> None:
        """Count what is begun, and what is given up."""
        match action:
            case LoadShard(stage, worker):
                self._progress.loads.begin(stage, worker)
            case Release(partition, generation):
                self._progress.advance.end((generation, partition))
            case Retire(generation):
                self._progress.advance.drop(generation)
