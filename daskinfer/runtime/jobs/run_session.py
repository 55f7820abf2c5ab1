"""One run of a job, from its lease to its end: the same for a whole job and for a retry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count

from daskinfer.errors import ClusterLost, DaskinferError, Interrupted
from daskinfer.logs import logging_context
from daskinfer.runtime.cluster.connection import open_cluster
from daskinfer.runtime.cluster.fork_server import start_imports
from daskinfer.runtime.driver.event_log import EventLog, log_end
from daskinfer.runtime.driver.event_loop import Driver
from daskinfer.runtime.driver.progress_counter import ProgressCounter
from daskinfer.runtime.driver.run_context import RunContext
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.multi_driver import join_job, make_claim_store
from daskinfer.runtime.jobs.over_budget import explain_rejects
from daskinfer.runtime.jobs.run_reporter import HoldingCheck, RunReporter
from daskinfer.runtime.jobs.work import HeldJob, Share, Work
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.runtime.state_machine.rules import EarlierWork, RunRules
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.journal import Journal
from daskinfer.storage.jobs.membership import Membership

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
    work
        What is computed of it.
    watch
        Called with the progress, a few times a second.
    began
        `time.monotonic()` when the run began.
    join
        Whether other drivers may run the job beside this one.

    Examples
    --------
    >>> from daskinfer.runtime.jobs.job_resolution import OpenedJob
    >>> from daskinfer.runtime.jobs.whole_job import WholeJob
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> job = OpenedJob(JobStore("work", "demo"), record, record.plan, resumed=True, done=False)
    >>> RunSession(job, record.recipe, WholeJob(job), watch=print, began=0.0).progress.rows_total
    3
    """

    _held: HeldJob
    reporter: RunReporter

    def __init__(
        self,
        job: OpenedJob,
        recipe: Recipe,
        work: Work,
        watch: Callable[[Progress], None],
        began: float,
        join: bool = False,
    ) -> None:
        self.job = job
        self.recipe = recipe
        self.work = work
        self.counters: dict[str, int] = {}
        self.error: DaskinferError | None = None
        self._watch = watch
        self._began = began
        self._join = join
        self._said: set[str] = set()

    @property
    def progress(self) -> RunProgress:
        """What is done so far."""
        return self.work.progress

    @property
    def epoch(self) -> int:
        """Number of this driver among those that ran the job."""
        return self._held.epoch

    @property
    def member(self) -> str:
        """Its id among those who run the job together; empty where it runs it alone."""
        return self._held.member

    def run(self) -> None:
        """Run the job to its seal; `error` says afterwards why it did not get there.

        Raises
        ------
        JobBusy
            Another live driver runs it.
        """
        store, record = self.job.store, self.job.record
        lease = join_job(self.job, self.recipe.workspace) if self._join else store.acquire()
        try:
            journal = Journal(store.url, lease.epoch, lease.member)
            self.reporter = RunReporter(record.job, lambda: self.progress, lease, journal, self._watch, self._began)
            self._held = HeldJob(self.job, self.recipe, lease, self.reporter)
            with logging_context(job=record.job, epoch=lease.epoch, snapshot=record.resolution.snapshot):
                try:
                    _log.info("job resumed" if self.job.resumed else "job begun", extra={"rows": record.rows})
                    self._run()
                except KeyboardInterrupt:
                    self.error = Interrupted("interrupted; everything committed so far stays")
                except DaskinferError as error:
                    incidents, needs_retry = self.progress.incidents, self.work.needs_retry
                    self.error = explain_rejects(error, record.output, record.job, incidents, needs_retry)
                log_end(self.error, self.progress.rows_out, self.progress.rows_quarantined)
            self.reporter.end(self.error)
        finally:
            lease.release()

    def _run(self) -> None:
        self.reporter.enter("starting")
        self.work.begin(self._held)
        self._compute_all()
        self.reporter.enter("sealing")
        self.work.finish()

    def _compute_all(self) -> None:
        """Compute what is left, over one connection after the other where schedulers are lost."""
        losses = 0
        for connection in count():
            before = self.progress.rows_this_run
            start_imports(self.recipe.cluster)
            try:
                share = self.work.next_share(connection)
                if share is not None:
                    self._compute(share, connection)
                if share is None or share.is_last:
                    return
            except ClusterLost as lost:
                losses = 1 if self.progress.rows_this_run > before else losses + 1
                if losses > MOST_LOSSES:
                    raise
                detail = f"{lost.message}; going on over a new one with what is not committed"
                self.reporter.lose_scheduler(connection, detail)

    def _compute(self, share: Share, connection: int) -> None:
        record, work, held, progress = self.job.record, self.work, self._held, self.progress
        snapshots, lease = work.snapshots, held.lease
        claim_store = (
            make_claim_store(lease, self.job.store, record, snapshots.output())
            if isinstance(lease, Membership)
            else None
        )
        held.outlast(lambda: snapshots.prepare_places(share.pin))
        poison = held.outlast(snapshots.poison_records.all)
        machine = StateMachine(
            RunRules(
                self.job.plan, work.rules, record.code, held.epoch, self._requirements(), work.limits(self.recipe)
            ),
            EarlierWork(record.partitions, share.committed, progress.rows_quarantined, poison),
            AliasTracker(share.pin, work.rules, len(snapshots.log.known.pins)),
            share.trial,
            ClaimPolicy(held.member, record.partitions, share.committed) if held.member else None,
        )
        cluster = self.recipe.cluster
        self.reporter.tell(f"starting on {cluster.address or f'{cluster.workers.workers} worker(s) of this machine'}")
        opened = open_cluster(cluster, PATIENCE_SECONDS if connection else 0, self._say_once, self.reporter.tell)
        with opened as (client, admission):
            self.reporter.enter("loading")
            progress.loads.clear()
            progress.advance.clear()
            context = RunContext(
                client=client,
                admission=admission,
                handle=replace(snapshots.handle(share.pin), connection=connection),
                table=work.table(),
                requires=self.recipe.placement.requires,
                recovery=self.recipe.recovery,
                snapshots=snapshots,
                progress=progress,
            )
            observers = (
                EventLog(),
                ProgressCounter(progress, machine, context.table),
                self.reporter,
                HoldingCheck(lease, snapshots, self.reporter),
            )
            driver = Driver(context, machine, observers, poison, claim_store)
            try:
                driver.run()
            finally:
                self.reporter.stop_clock()
                self.counters = dict(machine.counters)
                if cluster.address is not None and client.status == "running":
                    with suppress(OSError):  # the scheduler goes in this moment
                        driver.withdraw()

    def _say_once(self, line: str) -> None:
        """Say what a run found out about its cluster, unless it has been said over an earlier connection."""
        if line not in self._said:
            self._said.add(line)
            self.reporter.note("worker-left-alone", line)

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
