"""One run of a job, from its lease to its seal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TypeVar

from daskinfer.errors import ClusterLost, DaskinferError, Interrupted, StorageError, StorageRefused
from daskinfer.logs import logging_context
from daskinfer.runtime.changed_input import read_table
from daskinfer.runtime.claims import Claims
from daskinfer.runtime.cluster import open_cluster, start_imports
from daskinfer.runtime.core import DriverCore
from daskinfer.runtime.driver import Driver
from daskinfer.runtime.joining import clear_activations, clear_output, join_job, make_claimer
from daskinfer.runtime.keeper import Keeper
from daskinfer.runtime.ledger import Ledger
from daskinfer.runtime.limits import Limits
from daskinfer.runtime.messages import Note, Recovered
from daskinfer.runtime.narration import final_phase, narrate_end
from daskinfer.runtime.opening import OpenedJob
from daskinfer.runtime.overbudget import explain_rejects
from daskinfer.runtime.pinning import Pinning
from daskinfer.runtime.posts import Staffing
from daskinfer.runtime.progress import count_progress
from daskinfer.runtime.snapshotmap import SnapshotMap
from daskinfer.runtime.trial import Trial
from daskinfer.spec.control import WorkerState
from daskinfer.spec.generation import Pin
from daskinfer.spec.job import Phase, Progress
from daskinfer.spec.recipe import Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.control import ControlLog
from daskinfer.storage.journal import Event, Journal
from daskinfer.storage.lease import Lease
from daskinfer.storage.members import Membership
from daskinfer.storage.outputs.job import describe_result, open_fence
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.sink import WholeOutput
from daskinfer.storage.retries import outlast

T = TypeVar("T")
_log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25
CHECK_SECONDS = 5.0
SNAPSHOT_HEARTBEAT_SECONDS = 200.0
TROUBLE_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
"""How long a scheduler that was lost may take to come back."""
MOST_LOSSES = 5
"""Schedulers that may be lost without one row being committed in between."""


class Session:
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

    def __init__(
        self, job: OpenedJob, recipe: Recipe, watch: Callable[[Progress], None], began: float, join: bool = False
    ) -> None:
        self.job = job
        self._join = join
        self.recipe = recipe
        self.rules = job.record.recipe.consistency
        self.ledger = Ledger(job.plan, job.record.rows)
        self.inputs = job.store.inputs(job.record)
        self.epoch = 0
        self.pins: tuple[Pin, ...] = (job.record.first_pin,)
        self.counters: dict[str, int] = {}
        self.error: DaskinferError | None = None
        self.running_since: float | None = None
        self.running_until: float | None = None
        self.workers: tuple[WorkerState, ...] = ()
        self._watch = watch
        self._began = began
        self._phase: Phase = "starting"
        self._due: dict[str, float] = {}
        self._said: set[str] = set()
        self._lost: tuple[int, float] | None = None
        """Number of the incident of a lost scheduler that is not over, and when it was noted."""

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
            with logging_context(job=record.job, epoch=self.epoch, snapshot=record.resolution.snapshot):
                try:
                    _log.info("job resumed" if self.job.resumed else "job begun", extra={"rows": record.rows})
                    self._run()
                except KeyboardInterrupt:
                    self.error = Interrupted("interrupted; everything committed so far stays")
                except DaskinferError as error:
                    told = self.ledger.incidents
                    self.error = explain_rejects(error, record.output, record.job, told, self._is_mended)
                narrate_end(self.error, self.ledger.rows_out, self.ledger.rows_quarantined)
            self._enter(final_phase(self.error))
            with suppress(StorageRefused):  # the job has ended as it has, written down or not
                self._journal.flush()
        finally:
            self._lease.release()

    @property
    def _is_mended(self) -> bool:
        """Whether only a retry goes on with the job."""
        return self.inputs != self.job.record.inputs

    @property
    def member(self) -> str:
        """Its id among those who run the job together; empty where it runs it alone."""
        return self._lease.member

    @property
    def startup_seconds(self) -> float:
        """Seconds until the first partition could start, or until now."""
        return (self.running_since or time.monotonic()) - self._began

    @property
    def running_seconds(self) -> float:
        """Seconds from the start of the first partition until now, or until the last commit."""
        if self.running_since is None:
            return 0.0
        return (self.running_until or time.monotonic()) - self.running_since

    def progress(self, message: str = "") -> Progress:
        """Return how the run stands now."""
        return Progress(
            phase=self._phase,
            job=self.job.record.job,
            member=self.member,
            seconds=time.monotonic() - self._began,
            # Nothing tells before the first commit.
            busy=self.ledger.busy(self.running_seconds) if self.ledger.rows_this_run else (),
            workers=self.workers,
            message=message,
            **count_progress(self.ledger, self.running_seconds),
        )

    def _run(self) -> None:
        record = self.job.record
        self._enter("starting")
        self._tell(f"precision: {record.precision}")
        if record.length:
            self._tell(f"length: {record.length}")
        if self.job.resumed:
            cancel = ControlLog(self.job.store.url).cancelled(self.epoch - 1)
            stopped = "" if cancel is None else f": it was cancelled by {cancel.by} at {cancel.at}"
            self._note("resumed", f"epoch {self.epoch} goes on where an earlier one stopped{stopped}")
        keeper = Keeper(record, self.recipe, self.epoch, member=self.member)
        pin = self._outlast(keeper.begin)
        sink = self._outlast(lambda: self._open_output(keeper))
        self._compute_all(keeper, pin, sink)
        self._enter("sealing")
        self._outlast(lambda: self._seal(keeper, sink))
        self._outlast(keeper.release)

    def _outlast(self, call: Callable[[], T]) -> T:
        """Do something in storage that may be repeated, though the store refuses for a while."""
        return outlast(call, self.recipe.recovery.storage, lambda error: self._note("storage-refused", error.message))

    def _compute_all(self, keeper: Keeper, first: Pin, sink: WholeOutput) -> None:
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
                self._note(
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
                # Numbers below zero are nobody else's.
                self._lost = (-connection - 1, time.monotonic())
                self._record(Note("scheduler-lost", detail, self._lost[0]))

    def _open_output(self, keeper: Keeper) -> WholeOutput:
        """Prepare the output. Under the lease and before the first task, so that nothing of this job can be lost."""
        confirm(self.job.record.output, self.job.record.job)
        open_fence(self.job.record, self.recipe.workspace, self.epoch).sweep()
        sink = keeper.output()
        if not self.member:  # members have done so before they were members
            clear_output(self.job.store, self.job.record, sink, self.recipe.workspace)
            sink.create()
        return sink

    def _compute(
        self, keeper: Keeper, pin: Pin, committed: MutableMapping[int, str], trial: Trial | None, connection: int
    ) -> None:
        record, plan, rules = self.job.record, self.job.plan, self.rules
        lease, out = self._lease, keeper.output()
        claimer = make_claimer(lease, self.job.store, record, out) if isinstance(lease, Membership) else None
        self._outlast(lambda: keeper.prepare_places(pin))
        poison = self._outlast(keeper.convictions.all)
        core = DriverCore(
            plan=plan,
            pinning=Pinning(pin, rules, len(keeper.log.known.pins)),
            rules=rules,
            source=record.code,
            epoch=self.epoch,
            partitions=record.partitions,
            committed=committed,
            rejects=self.ledger.rows_quarantined,
            staffing=self._staffing(),
            limits=self._limits(),
            trial=trial,
            poison=poison,
            claims=Claims(self.member, record.partitions, committed) if self.member else None,
        )
        cluster = self.recipe.cluster
        self._tell(f"starting on {cluster.address or f'{cluster.workers.workers} worker(s) of this machine'}")
        opened = open_cluster(cluster, PATIENCE_SECONDS if connection else 0, self._say_once)
        with opened as (client, admission):
            self._enter("loading")
            self.ledger.loads.clear()
            self.ledger.advance.clear()
            driver = Driver(
                client=client,
                admission=admission,
                core=core,
                ledger=self.ledger,
                handle=replace(keeper.handle(pin), connection=connection),
                keeper=keeper,
                table=self._table(),
                requires=self.recipe.placement.requires,
                recovery=self.recipe.recovery,
                note=self._record,
                say=self._tell,
                pulse=lambda: self._pulse(driver, keeper),
                poison=poison,
                claimer=claimer,
            )
            try:
                driver.run()
            finally:
                self.running_until = time.monotonic()
                self.counters = dict(core.counters)
                self.pins = keeper.log.known.pins
                if cluster.address is not None and client.status == "running":
                    with suppress(OSError):  # the scheduler goes in this moment
                        driver.withdraw()

    def _say_once(self, line: str) -> None:
        """Say what a run found out about its cluster, unless it has been said over an earlier connection."""
        if line not in self._said:
            self._said.add(line)
            self._note("worker-left-alone", line)

    def _limits(self) -> Limits:
        return Limits.of(self.recipe, self.job.record.rows)

    def _staffing(self) -> Staffing:
        consistency, placement = self.job.record.recipe.consistency, self.recipe.placement
        return Staffing(
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

    def _pulse(self, driver: Driver, keeper: Keeper) -> None:
        now = time.monotonic()
        if self.running_since is None and driver.running_since is not None:
            self.running_since = driver.running_since
            self._enter("running")
        if self._lost is not None and driver.running_since is not None:
            self._record(Recovered(self._lost[0], now - self._lost[1]))
            self._lost = None
        if self._is_due("progress", now, PROGRESS_SECONDS):
            self.workers = driver.workers
            self._tell()
        if self._is_due("check", now, CHECK_SECONDS):
            # A store that is away for a minute must not end hours of work.
            with suppress(StorageRefused):
                self._lease.check()
            with suppress(StorageError):
                keeper.check()
            with suppress(StorageRefused):
                self._journal.keep_up(now - self._began)
            if self._lease.trouble and self._is_due("trouble", now, TROUBLE_SECONDS):
                self._note("heartbeat-failed", self._lease.trouble)
        if self._is_due("snapshot", now, SNAPSHOT_HEARTBEAT_SECONDS):
            with suppress(StorageError):
                keeper.heartbeat()

    def _is_due(self, what: str, now: float, every: float) -> bool:
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True

    def _seal(self, keeper: Keeper, sink: WholeOutput) -> None:
        record = self.job.record
        self._lease.check()
        if record.is_staged:
            keeper.log.seal()
        self.pins = keeper.log.known.pins
        sink.seal({**describe_result(record, keeper.log.known.current.snapshot), "inputs": self.inputs})
        _log.info("output sealed", extra={"output": record.output})
        clear_activations(self.job.store, keeper.handle(keeper.log.known.current))

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._write(Event(time.monotonic() - self._began, "phase", {"phase": phase}))
        self._tell()

    def _note(self, kind: str, detail: str) -> None:
        self._record(Note(kind, detail))

    def _record(self, action: Note | Recovered) -> None:
        at = time.monotonic() - self._began
        if isinstance(action, Recovered):
            kind = self.ledger.end_incident(action.number, action.seconds).kind
            _log.info("recovered from %s", kind, extra={"incident": kind, "seconds": action.seconds})
            self._write(Event(at, "recovered", {"from": kind, "seconds": action.seconds}))
            return
        kind, detail, seconds = action.kind, action.detail, action.detect_seconds
        _log.info("%s: %s", kind, detail, extra={"incident": kind})
        self.ledger.add_incident(at, kind, detail, action.number, seconds)
        self._write(Event(at, kind, {"detail": detail} | ({} if seconds is None else {"detect_seconds": seconds})))
        self._tell(f"{kind}: {detail}")

    def _write(self, event: Event) -> None:
        with suppress(StorageRefused):  # the journal keeps it, and writes it later
            self._journal.append(event)

    def _tell(self, message: str = "") -> None:
        progress = self.progress(message)
        self._lease.show(progress)
        self._watch(progress)
