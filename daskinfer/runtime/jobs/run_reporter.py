"""What a run says of itself: progress for whoever watches, the journal, the log, and incidents for the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from daskinfer.errors import DaskinferError, StorageError, StorageRefused
from daskinfer.knobs import PROGRESS_SECONDS
from daskinfer.runtime.driver.event_log import final_phase
from daskinfer.runtime.driver.observer import RunObserver, RunView
from daskinfer.runtime.driver.progress_fields import count_progress
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.protocol.actions import Action, IncidentRecord, Recovered, StatusLine
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.record import Phase, Progress
from daskinfer.storage.jobs.journal import Event, Journal
from daskinfer.storage.jobs.lease import Lease
from daskinfer.storage.jobs.membership import Membership

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
SNAPSHOT_HEARTBEAT_SECONDS = 200.0
TROUBLE_SECONDS = 60.0


class RunReporter(RunObserver):
    """Tells how a run stands.

    Parameters
    ----------
    job
        Job id.
    sums
        Gives what is counted by now.
    lease
        Shows the progress to others.
    journal
        Where what happens is written down.
    watch
        Called with the progress, a few times a second.
    began
        `time.monotonic()` when the run began.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> sums = RunProgress(make_plan(), rows_total=10)
    >>> lease, watch = Mock(member=""), lambda progress: print(progress.phase, progress.rows_total)
    >>> RunReporter("demo", lambda: sums, lease, Mock(), watch, time.monotonic()).enter("running")
    running 10
    """

    def __init__(
        self,
        job: str,
        sums: Callable[[], RunProgress],
        lease: Lease | Membership,
        journal: Journal,
        watch: Callable[[Progress], None],
        began: float,
    ) -> None:
        self._job = job
        self._sums = sums
        self._lease = lease
        self._interval = PROGRESS_SECONDS.get()
        self._journal = journal
        self._watch = watch
        self._began = began
        self._phase: Phase = "starting"
        self._recurs = False
        self._running_since: float | None = None
        self._running_until: float | None = None
        self._workers: tuple[WorkerState, ...] = ()
        self._told_at = 0.0
        self._lost: tuple[int, float] | None = None
        """Number of the incident of a lost scheduler that is not over, and when it was noted."""

    @property
    def startup_seconds(self) -> float:
        """Seconds until the first partition could start, or until now."""
        return (self._running_since or time.monotonic()) - self._began

    @property
    def running_seconds(self) -> float:
        """Seconds from the start of the first partition until now, or until the last commit."""
        if self._running_since is None:
            return 0.0
        return (self._running_until or time.monotonic()) - self._running_since

    def progress(self, message: str = "") -> Progress:
        """Return how the run stands now."""
        sums, running = self._sums(), self.running_seconds
        return Progress(
            phase=self._phase,
            recurs=self._recurs,
            job=self._job,
            member=self._lease.member,
            seconds=time.monotonic() - self._began,
            # Nothing tells before the first commit.
            busy=sums.busy(running) if sums.rows_this_run else (),
            workers=self._workers,
            message=message,
            **count_progress(sums, running),
        )

    def tell(self, message: str = "") -> None:
        """Show how the run stands."""
        progress = self.progress(message)
        self._lease.show(progress)
        self._watch(progress)

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self._phase = phase
        self._write(Event(time.monotonic() - self._began, "phase", {"phase": phase}))
        self.tell()

    def end(self, error: DaskinferError | None) -> None:
        """Begin the last phase."""
        self._recurs = error is not None and error.recurs
        self.enter(final_phase(error))
        self.flush()

    def note(self, kind: str, detail: str) -> None:
        """Write an incident down."""
        self._record(IncidentRecord(kind, detail))

    def lose_scheduler(self, connection: int, detail: str) -> None:
        """Write down that a scheduler is lost, until partitions can start over another connection."""
        # Numbers below zero are nobody else's.
        self._lost = (-connection - 1, time.monotonic())
        self._record(IncidentRecord("scheduler-lost", detail, self._lost[0]))

    def stop_clock(self) -> None:
        """Count no further seconds as running."""
        self._running_until = time.monotonic()

    def keep_up(self) -> None:
        """Write what the journal owes, now and then."""
        with suppress(StorageRefused):
            self._journal.keep_up(time.monotonic() - self._began)

    def flush(self) -> None:
        """Write all that the journal owes."""
        with suppress(StorageRefused):  # the job has ended as it has, written down or not
            self._journal.flush()

    def on_action(self, action: Action) -> None:
        """Write incidents down, and show what is worth a line."""
        if isinstance(action, IncidentRecord | Recovered):
            self._record(action)
        elif isinstance(action, StatusLine):
            self.tell(action.detail)

    def on_step(self, run: RunView) -> None:
        """Show the progress, a few times a second."""
        now = time.monotonic()
        if self._running_since is None and run.running_since is not None:
            self._running_since = run.running_since
            self.enter("running")
        if self._lost is not None and run.running_since is not None:
            self._record(Recovered(self._lost[0], now - self._lost[1]))
            self._lost = None
        if now - self._told_at >= self._interval:
            self._told_at = now
            self._workers = run.workers
            self.tell()

    def _record(self, action: IncidentRecord | Recovered) -> None:
        at = time.monotonic() - self._began
        if isinstance(action, Recovered):
            kind = self._sums().end_incident(action.number, action.seconds).kind
            _log.info("recovered from %s", kind, extra={"incident": kind, "seconds": action.seconds})
            self._write(Event(at, "recovered", {"from": kind, "seconds": action.seconds}))
            return
        kind, detail, seconds = action.kind, action.detail, action.detect_seconds
        _log.info("%s: %s", kind, detail, extra={"incident": kind})
        self._sums().add_incident(at, kind, detail, action.number, seconds)
        self._write(Event(at, kind, {"detail": detail} | ({} if seconds is None else {"detect_seconds": seconds})))
        self.tell(f"{kind}: {detail}")

    def _write(self, event: Event) -> None:
        with suppress(StorageRefused):  # the journal keeps it, and writes it later
            self._journal.append(event)


class HoldingCheck(RunObserver):
    """Makes sure, now and then, that the job and its snapshots are still ours, and shows that we live.

    Parameters
    ----------
    lease
        On the job.
    snapshots
        Holds locks.
    reporter
        Hears of trouble.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> lease, snapshots = Mock(trouble=""), Mock()
    >>> HoldingCheck(lease, snapshots, Mock()).on_step(None)
    >>> lease.check.called, snapshots.heartbeat.called
    (True, True)
    """

    def __init__(self, lease: Lease | Membership, snapshots: SnapshotManager, reporter: RunReporter) -> None:
        self._lease = lease
        self._interval = PROGRESS_SECONDS.get()
        self._snapshots = snapshots
        self._reporter = reporter
        self._due: dict[str, float] = {}

    def on_step(self, run: RunView) -> None:
        """Check what is due."""
        if self._is_due("check", CHECK_SECONDS):
            # A store that is away for a minute must not end hours of work.
            with suppress(StorageRefused):
                self._lease.check()
            with suppress(StorageError):
                self._snapshots.check()
            self._reporter.keep_up()
            if self._lease.trouble and self._is_due("trouble", TROUBLE_SECONDS):
                self._reporter.note("heartbeat-failed", self._lease.trouble)
        if self._is_due("snapshot", SNAPSHOT_HEARTBEAT_SECONDS):
            with suppress(StorageError):
                self._snapshots.heartbeat()

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True
