"""A job as work: every partition that is not committed, until the output is sealed."""

from __future__ import annotations

import logging

from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.changed_input import read_table
from daskinfer.runtime.jobs.committed_snapshots import SnapshotMap
from daskinfer.runtime.jobs.input_correction import InputCorrection
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.multi_driver import clear_activations, clear_output
from daskinfer.runtime.jobs.work import HeldJob, Share
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.recipe.schema import Consistency, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.outputs.job_output import describe_result, open_fence
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.sink import WholeOutput

_log = logging.getLogger(__name__)


class WholeJob:
    """All that is not committed of a job.

    Parameters
    ----------
    job
        The job.
    correction
        For a job that stopped and is finished on its input as it is now.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> work = WholeJob(OpenedJob(JobStore("work", "demo"), record, record.plan, resumed=True, done=False))
    >>> work.progress.rows_total, work.needs_retry
    (3, False)
    """

    snapshots: SnapshotManager
    _held: HeldJob
    _sink: WholeOutput
    _first: SnapshotPin

    def __init__(self, job: OpenedJob, correction: InputCorrection | None = None) -> None:
        self.progress = RunProgress(job.plan, job.record.rows)
        self.inputs = job.store.inputs(job.record)
        """Digest of the input files."""
        self._job = job
        self._correction = correction

    @property
    def rules(self) -> Consistency:
        """What the recipe says of versions."""
        return self._job.record.recipe.consistency

    @property
    def needs_retry(self) -> bool:
        """Whether its input was corrected since it began."""
        return self._correction is not None or self.inputs != self._job.record.inputs

    def limits(self, recipe: Recipe) -> Limits:
        """Return how much may go wrong, by the recipe."""
        return Limits.of(recipe, self._job.record.rows)

    def table(self) -> PartitionTable:
        """Return the input as the job began with it, or as it was corrected."""
        if self._correction is not None:
            return self._correction.table
        return read_table(self._job.store, self._job.record, self.inputs)

    def begin(self, held: HeldJob) -> None:
        """Lock the snapshot and prepare the output."""
        self._held = held
        record, reporter = held.record, held.reporter
        reporter.tell(f"precision: {record.precision}")
        if record.kernels:
            reporter.tell(f"linear layers: {record.kernels}")
        if record.length:
            reporter.tell(f"length: {record.length}")
        if held.job.resumed:
            cancel = ControlLog(held.job.store.url).cancelled(held.epoch - 1)
            stopped = "" if cancel is None else f": it was cancelled by {cancel.by} at {cancel.at}"
            reporter.note("resumed", f"epoch {held.epoch} goes on where an earlier one stopped{stopped}")
        self.snapshots = SnapshotManager(record, held.recipe, held.epoch, member=held.member)
        self._first = held.outlast(self.snapshots.begin)
        self._sink = held.outlast(self._open_output)

    def next_share(self, connection: int) -> Share | None:
        """Return all that is left."""
        held, snapshots, progress = self._held, self.snapshots, self.progress
        record = held.record
        pin = held.outlast(snapshots.begin) if connection else self._first
        found = held.outlast(lambda: list(snapshots.standing.digests(keep=True)))
        committed = SnapshotMap(record.partitions)
        for commit in found:
            committed[commit.partition] = commit.snapshot
            if connection == 0:
                progress.add_earlier(commit)
        if connection == 0:
            held.outlast(lambda: self._sink.inspect(found))
        else:
            progress.find_more(found, held.member)
        # An output that is to converge may have to be computed again where it is whole.
        is_open = record.recipe.consistency.converge and not snapshots.log.known.sealed
        trial = held.outlast(lambda: snapshots.open_trial(self._sink))
        if trial is not None:
            held.reporter.note(
                "trial", f"{len(trial.sample)} of {record.partitions} partitions are computed on two snapshots"
            )
        is_left = len(committed) < record.partitions or is_open or trial is not None
        return Share(pin, committed, trial) if is_left else None

    def finish(self) -> None:
        """Seal the output."""
        self._held.outlast(self._seal)
        self._held.outlast(self.snapshots.release)

    def _open_output(self) -> WholeOutput:
        held, record = self._held, self._held.record
        if self._correction is not None:
            self.inputs = self._correction.read()
        confirm(record.output, record.job)
        open_fence(record, held.recipe.workspace, held.epoch).sweep()
        sink = self.snapshots.output()
        if not held.member:  # members have done so before they were members
            clear_output(held.job.store, record, sink, held.recipe.workspace)
            sink.create()
        if self._correction is not None:
            self._correction.take_back(held, self.snapshots, sink)
        return sink

    def _seal(self) -> None:
        held, record, log = self._held, self._held.record, self.snapshots.log
        if self._correction is not None:
            self._correction.refuse_late(held, self._sink)
        held.lease.check()
        if record.is_staged:
            log.seal()
        self._sink.seal({**describe_result(record, log.known.current.snapshot), "inputs": self.inputs})
        _log.info("output sealed", extra={"output": record.output})
        clear_activations(held.job.store, self.snapshots.handle(log.known.current))
