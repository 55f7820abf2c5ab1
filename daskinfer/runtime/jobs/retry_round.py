"""A retry as work: the quarantined rows of a job that is done, computed again and merged into its output."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from daskinfer.errors import InputError
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.changed_input import describe_rows, find_touched, has_changed, read_input, read_refused
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.work import HeldJob, Share
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import digest_files
from daskinfer.spec.plan import Plan
from daskinfer.spec.recipe.schema import Consistency, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.job_output import merge_round, open_fence, open_supplement, take_back
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.retry_rounds import (
    Round,
    has_begun_merging,
    next_round,
    note_inputs,
    save_round,
    supplement_url,
)
from daskinfer.storage.outputs.staging import StagedPartSink

_log = logging.getLogger(__name__)


class RoundProgress(RunProgress):
    """Sums of a retry: of a merged part, only the rows that were retried count.

    Parameters
    ----------
    plan
        The job's plan.
    round
        What is retried.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl", refused=[1])
    >>> progress = RoundProgress(record.plan, next_round(record.output, "demo"))
    >>> progress.rows_total, progress.rows_left
    (1, 1)
    """

    def __init__(self, plan: Plan, round: Round) -> None:
        super().__init__(plan, round.rows)
        self._wanted = {part.partition: part.rows_quarantined for part in round.parts}
        self._left = round.rows
        self.is_merged = False

    def merge(self) -> None:
        """Take in that the output has what was recovered."""
        self.is_merged = True

    @property
    def rows_left(self) -> int:
        """Rows in the job's quarantine."""
        return self.rows_quarantined if self.is_merged else self._left

    def add_earlier(self, record: CommitDigest) -> None:
        """Count a partition that an earlier driver of this retry committed."""
        super().add_earlier(self._narrow(record))

    def add(self, record: CommitRecord, is_ours: bool = True) -> None:
        """Count a partition that this driver committed."""
        narrow = self._narrow(CommitDigest.of(record))
        super().add(record.model_copy(update={"rows_in": narrow.rows_in, "rows_out": narrow.rows_out}), is_ours)

    def rows_of(self, partition: int, rows: int) -> int:
        """Return how many rows of a partition are retried."""
        return min(rows, self._wanted.get(partition, 0))

    def recount(self, records: Iterable[CommitDigest]) -> None:
        """Count what is committed anew."""
        super().recount(map(self._narrow, records))

    def _narrow(self, record: CommitDigest) -> CommitDigest:
        wanted = self._wanted[record.partition]
        return replace(record, rows_in=wanted, rows_out=wanted - record.rows_quarantined)


class RetryRound:
    """What one retry computes again.

    Parameters
    ----------
    job
        The job.
    round
        What there was to retry when it was looked at; it is looked at again once the job is ours.

    Examples
    --------
    >>> from daskinfer.runtime.jobs.job_resolution import OpenedJob
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl", refused=[1])
    >>> job = OpenedJob(JobStore("work", "demo"), record, record.plan, resumed=True, done=True)
    >>> RetryRound(job, next_round(record.output, "demo")).round.rows
    1
    """

    needs_retry = True
    # Every part stays on the snapshot that it was computed on.
    rules = Consistency()
    snapshots: SnapshotManager
    _held: HeldJob
    _fence: Fence
    _sink: StagedPartSink

    def __init__(self, job: OpenedJob, round: Round) -> None:
        self._job = job
        self._now: PartitionTable | None = None
        self._compared: set[int] = set()
        """Partitions that were committed and compared with the input as it is now."""
        self._take_up(round)

    def limits(self, recipe: Recipe) -> Limits:
        """Return how much may go wrong: all that is left may be rows that break the model, and they stay where they are."""
        return replace(Limits.of(recipe, self._job.record.rows), hopeless=False)

    def table(self) -> PartitionTable:
        """Return the input as it is now."""
        if self._now is None:
            raise RuntimeError("the input of a retry is read before anything is computed")
        return self._now

    def begin(self, held: HeldJob) -> None:
        """Write down what is retried, and compare the input with what was computed."""
        self._held = held
        record, workspace = held.record, held.recipe.workspace
        confirm(record.output, record.job)
        self._fence = open_fence(record, workspace, held.epoch)
        self._fence.sweep()
        self._take_up(next_round(absolute_url(record.output), record.job))
        number = self.round.number
        if self.round.parts:
            save_round(self._fence, self.round)
            held.reporter.note("retry", f"retry {number} of {self.round.rows} quarantined rows, epoch {held.epoch}")
        self.snapshots = SnapshotManager(record, held.recipe, held.epoch, number)
        self._sink = open_supplement(record, record.first_pin, number, workspace, held.epoch)
        done = list(self._sink.committed())
        # Once merging has begun the round has its outcome, whatever becomes of the input.
        if not has_begun_merging(self._fence.url, self.round):
            self._now = self._read_input(done)
        for commit in self._sink.committed():
            self.progress.add_earlier(CommitDigest.of(commit))
        self._compared = {commit.partition for commit in done}

    def next_share(self, connection: int) -> Share | None:
        """Return what is left of the parts that were computed on one snapshot."""
        record = self._held.record
        done = {commit.partition: commit for commit in self._sink.committed()}
        # A worker of an earlier driver may have committed since, from the input as it was.
        late = [
            each for each in done.values() if each.epoch < self._held.epoch and each.partition not in self._compared
        ]
        for partition in self._take_back_changed(late):
            del done[partition]
        self._compared.update(commit.partition for commit in late)
        if connection:
            self.progress.find_more(map(CommitDigest.of, done.values()))
        left = {part.partition: part.snapshot for part in self.round.parts if part.partition not in done}
        if not left:
            return None
        snapshot = min(left.values())
        chosen = {partition for partition, other in left.items() if other == snapshot}
        others = {partition: snapshot for partition in range(record.partitions) if partition not in chosen}
        return Share(self.snapshots.retake(snapshot), others, is_last=False)

    def finish(self) -> None:
        """Merge the round into the output."""
        record = self._held.record
        self._held.lease.check()
        if self.round.parts:
            merge_round(record, self.snapshots.log.known, self.round, self._fence)
            _log.info("retry merged", extra={"output": record.output})
        self.progress.merge()
        delete(join_url(absolute_url(self._held.recipe.workspace), "activations", record.job), recursive=True)
        self.snapshots.release()

    def _take_up(self, round: Round) -> None:
        self.round = round
        self.progress = RoundProgress(self._job.plan, round)

    def _read_input(self, done: Sequence[CommitRecord]) -> PartitionTable:
        """Return the input as it is now, and take back what an earlier driver recovered of rows that are others now.

        Raises
        ------
        InputError
            Rows whose results stay in the output are others now.
        """
        record, url = self._held.record, absolute_url(self._held.record.output)
        refused = {
            part.partition: read_refused(url, record, part.partition, part.rows_quarantined)
            for part in self.round.parts
        }
        table = read_input(self._job.store, record, refused)
        self._held.reporter.tell("comparing the input with what was computed")
        compared = {*refused, *find_touched(self._job.store.table(), table)}
        for commit in self.snapshots.output().committed(compared):
            if has_changed(table, commit, without=refused.get(commit.partition, frozenset())):
                raise InputError(
                    f"rows that have results in {record.output} have changed in the input, among them some of "
                    f"{describe_rows(record, commit.partition)}",
                    hint="A retry computes quarantined rows alone. Put the others back as they were, or make the output "
                    "again with --fresh.",
                )
        self._now = table
        self._take_back_changed(done)
        note_inputs(self._fence, self.round, digest_files(table.files))
        return table

    def _take_back_changed(self, commits: Sequence[CommitRecord]) -> list[int]:
        """Take back parts of the round with recovered rows that are others in the input now; return their partitions."""
        record, url, number = self._held.record, absolute_url(self._held.record.output), self.round.number
        counts = {part.partition: part.rows_quarantined for part in self.round.parts}
        changed = []
        for commit in commits:
            refused = read_refused(url, record, commit.partition, counts[commit.partition])
            place = supplement_url(url, record.job, number, commit.epoch)
            left = read_refused(place, record, commit.partition, commit.rows_quarantined)
            if has_changed(self.table(), commit, only=refused - left):
                changed.append(commit.partition)
        take_back(record, changed, self._fence, number)
        return changed
