"""One run of a job, from its lease to its seal."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TypeVar

from daskinfer.errors import ClusterLost, DaskinferError, Interrupted
from daskinfer.logs import logging_context
from daskinfer.runtime.cluster.connection import open_cluster, start_imports
from daskinfer.runtime.driver.event_log import EventLog, final_phase, log_end
from daskinfer.runtime.driver.event_loop import Driver
from daskinfer.runtime.driver.progress_counter import ProgressCounter
from daskinfer.runtime.driver.run_context import RunContext
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.changed_input import read_table
from daskinfer.runtime.jobs.committed_snapshots import SnapshotMap
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.multi_driver import clear_activations, clear_output, join_job, make_claimer
from daskinfer.runtime.jobs.over_budget import explain_rejects
from daskinfer.runtime.jobs.run_reporter import HoldingCheck, RunReporter
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.runtime.state_machine.rules import EarlierWork, RunRules
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.journal import Journal
from daskinfer.storage.jobs.lease import Lease
from daskinfer.storage.jobs.membership import Membership
from daskinfer.storage.objects.backoff import outlast
from daskinfer.storage.outputs.job_output import describe_result, open_fence
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.sink import WholeOutput

T = TypeVar("T")
_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""How long a scheduler that was lost may take to come back."""
MOST_LOSSES = 5
"""Schedulers that may be lost without one row being committed in between."""


class RunSession:
    """One driver's life: what it holds, and how it stands.

    Parameters
    ----------
    job
        What to run.
    recipe
        As it is now: cluster, placement and error budget may differ from the job's record.
    watch
        Called with the progress, a few times a second.
    began
        `time.monotonic()` when the run began.
    join
        Whether other drivers may run the job beside this one.
    """

    _lease: Lease | Membership
    _journal: Journal
    reporter: RunReporter

    def __init__(
        self, job: OpenedJob, recipe: Recipe, watch: Callable[[Progress], None], began: float, join: bool = False
    ) -> None:
        self.job = job
        self._join = join
        self.recipe = recipe
        self.rules = job.record.recipe.consistency
        self.ledger = RunProgress(job.plan, job.record.rows)
        self.inputs = job.store.inputs(job.record)
        self.epoch = 0
        self.pins: tuple[SnapshotPin, ...] = (job.record.first_pin,)
        self.counters: dict[str, int] = {}
        self.error: DaskinferError | None = None
        self._watch = watch
        self._began = began
        self._said: set[str] = set()

    def run(self) -> None:
        """Run the job to its seal; `error` says afterwards why it did not get there.

        Raises
        ------
        JobBusy
            Another live driver runs it.
        """
        store = self.job.store
        self._lease = join_job(self.job, self.recipe.workspace) if self._join else store.acquire()
        try:
            self.epoch = self._lease.epoch
            self._journal = Journal(store.url, self.epoch, self.member)
            record = self.job.record
            self.reporter = RunReporter(
                record.job, lambda: self.ledger, self._lease, self._journal, self._watch, self._began
            )
            with logging_context(job=record.job, epoch=self.epoch, snapshot=record.resolution.snapshot):
                try:
                    _log.info("job resumed" if self.job.resumed else "job begun", extra={"rows": record.rows})
                    self._run()
                except KeyboardInterrupt:
                    self.error = Interrupted("interrupted; everything committed so far stays")
                except DaskinferError as error:
                    told = self.ledger.incidents
                    self.error = explain_rejects(error, record.output, record.job, told, self._is_corrected)
                log_end(self.error, self.ledger.rows_out, self.ledger.rows_quarantined)
            self.reporter.enter(final_phase(self.error))
            self.reporter.flush()
        finally:
            self._lease.release()

    @property
    def _is_corrected(self) -> bool:
        """Whether only a retry goes on with the job."""
        return self.inputs != self.job.record.inputs

    @property
    def member(self) -> str:
        """Its id among those who run the job together; empty where it runs it alone."""
        return self._lease.member

    def _run(self) -> None:
        record = self.job.record
        self.reporter.enter("starting")
        self.reporter.tell(f"precision: {record.precision}")
        if record.length:
            self.reporter.tell(f"length: {record.length}")
        if self.job.resumed:
            cancel = ControlLog(self.job.store.url).cancelled(self.epoch - 1)
            stopped = "" if cancel is None else f": it was cancelled by {cancel.by} at {cancel.at}"
            self.reporter.note("resumed", f"epoch {self.epoch} goes on where an earlier one stopped{stopped}")
        keeper = SnapshotManager(record, self.recipe, self.epoch, member=self.member)
        pin = self._outlast(keeper.begin)
        sink = self._outlast(lambda: self._open_output(keeper))
        self._compute_all(keeper, pin, sink)
        self.reporter.enter("sealing")
        self._outlast(lambda: self._seal(keeper, sink))
        self._outlast(keeper.release)

    def _outlast(self, call: Callable[[], T]) -> T:
        """Do something in storage that may be repeated, though the store refuses for a while."""
        return outlast(
            call, self.recipe.recovery.storage, lambda error: self.reporter.note("storage-refused", error.message)
        )

    def _compute_all(self, keeper: SnapshotManager, first: SnapshotPin, sink: WholeOutput) -> None:
        """Compute what is left."""
        record = self.job.record

        def compute(connection: int) -> bool:
            start_imports(self.recipe.cluster)
            pin = self._outlast(keeper.begin) if connection else first
            found = self._outlast(lambda: list(keeper.standing.digests(keep=True)))
            committed = SnapshotMap(record.partitions)
            for commit in found:
                committed[commit.partition] = commit.snapshot
                if connection == 0:
                    self.ledger.add_earlier(commit)
            if connection == 0:
                self._outlast(lambda: sink.inspect(found))
            if connection:
                self.ledger.find_more(found, self.member)
            # An output that is to converge may have to be computed again where it is whole.
            is_open = record.recipe.consistency.converge and not keeper.log.known.sealed
            trial = self._outlast(lambda: keeper.open_trial(sink))
            if trial is not None:
                self.reporter.note(
                    "trial", f"{len(trial.sample)} of {record.partitions} partitions are computed on two snapshots"
                )
            if len(committed) < record.partitions or is_open or trial is not None:
                self._compute(keeper, pin, committed, trial, connection)
            return True

        self._over_connections(compute)

    def _over_connections(self, compute: Callable[[int], bool]) -> None:
        """Compute over one connection after the other, where schedulers are lost, until it says that nothing is left."""
        losses = 0
        for connection in count():
            before = self.ledger.rows_this_run
            try:
                if compute(connection):
                    return
            except ClusterLost as lost:
                losses = 1 if self.ledger.rows_this_run > before else losses + 1
                if losses > MOST_LOSSES:
                    raise
                detail = f"{lost.message}; going on over a new one with what is not committed"
                self.reporter.lose_scheduler(connection, detail)

    def _open_output(self, keeper: SnapshotManager) -> WholeOutput:
        """Prepare the output. Under the lease and before the first task, so that nothing of this job can be lost."""
        confirm(self.job.record.output, self.job.record.job)
        open_fence(self.job.record, self.recipe.workspace, self.epoch).sweep()
        sink = keeper.output()
        if not self.member:  # members have done so before they were members
            clear_output(self.job.store, self.job.record, sink, self.recipe.workspace)
            sink.create()
        return sink

    def _compute(
        self,
        keeper: SnapshotManager,
        pin: SnapshotPin,
        committed: MutableMapping[int, str],
        trial: CanaryTrial | None,
        connection: int,
    ) -> None:
        record, plan, rules = self.job.record, self.job.plan, self.rules
        lease, out = self._lease, keeper.output()
        claim_store = make_claimer(lease, self.job.store, record, out) if isinstance(lease, Membership) else None
        self._outlast(lambda: keeper.prepare_places(pin))
        poison = self._outlast(keeper.convictions.all)
        machine = StateMachine(
            RunRules(plan, rules, record.code, self.epoch, self._requirements(), self._limits()),
            EarlierWork(record.partitions, committed, self.ledger.rows_quarantined, poison),
            AliasTracker(pin, rules, len(keeper.log.known.pins)),
            trial,
            ClaimPolicy(self.member, record.partitions, committed) if self.member else None,
        )
        cluster = self.recipe.cluster
        self.reporter.tell(f"starting on {cluster.address or f'{cluster.workers.workers} worker(s) of this machine'}")
        opened = open_cluster(cluster, PATIENCE_SECONDS if connection else 0, self._say_once)
        with opened as (client, admission):
            self.reporter.enter("loading")
            self.ledger.loads.clear()
            self.ledger.advance.clear()
            context = RunContext(
                client=client,
                admission=admission,
                handle=replace(keeper.handle(pin), connection=connection),
                table=self._table(),
                requires=self.recipe.placement.requires,
                recovery=self.recipe.recovery,
                snapshots=keeper,
                progress=self.ledger,
            )
            observers = (
                EventLog(),
                ProgressCounter(self.ledger, machine, context.table),
                self.reporter,
                HoldingCheck(lease, keeper, self.reporter),
            )
            driver = Driver(context, machine, observers, poison, claim_store)
            try:
                driver.run()
            finally:
                self.reporter.stop_clock()
                self.counters = dict(machine.counters)
                self.pins = keeper.log.known.pins
                if cluster.address is not None and client.status == "running":
                    with suppress(OSError):  # the scheduler goes in this moment
                        driver.withdraw()

    def _say_once(self, line: str) -> None:
        """Say what a run found out about its cluster, unless it has been said over an earlier connection."""
        if line not in self._said:
            self._said.add(line)
            self.reporter.note("worker-left-alone", line)

    def _limits(self) -> Limits:
        return Limits.of(self.recipe, self.job.record.rows)

    def _requirements(self) -> WorkerRequirements:
        consistency, placement = self.job.record.recipe.consistency, self.recipe.placement
        return WorkerRequirements(
            stages=self.job.plan.stages,
            replicas=self.job.plan.replicas,
            requires=placement.requires,
            standby=placement.standby,
            copies=consistency.copies,
            drained=ControlLog(self.job.store.url).drained(),
            is_shared=bool(self.member),
        )

    def _table(self) -> PartitionTable:
        return read_table(self.job.store, self.job.record, self.inputs)

    def _seal(self, keeper: SnapshotManager, sink: WholeOutput) -> None:
        record = self.job.record
        self._lease.check()
        if record.is_staged:
            keeper.log.seal()
        self.pins = keeper.log.known.pins
        sink.seal({**describe_result(record, keeper.log.known.current.snapshot), "inputs": self.inputs})
        _log.info("output sealed", extra={"output": record.output})
        clear_activations(self.job.store, keeper.handle(keeper.log.known.current))
