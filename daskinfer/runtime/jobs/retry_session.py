"""A retry: the quarantined rows of a job that is done, computed again and merged into its output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from daskinfer.errors import InputError, UsageError
from daskinfer.planning.plan import place_plan
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.changed_input import describe_rows, find_touched, has_changed, read_input, read_refused
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.request_resolution import current_numerics
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.source import digest_source
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import Progress, digest_files
from daskinfer.spec.plan import Plan, WorkerShape
from daskinfer.spec.recipe.schema import Consistency, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
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

_log = logging.getLogger(__name__)

_FRESH = "Make the output again: daskinfer run RECIPE --fresh"


class RoundLedger(RunProgress):
    """Sums of a retry: of a merged part, only the rows that were retried count.

    Parameters
    ----------
    plan
        The job's plan.
    round
        What is retried.
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


class RetrySession(RunSession):
    """One driver's part in a retry: usually all of it.

    Parameters
    ----------
    job, recipe, watch, began
        See `RunSession`.
    round
        What there was to retry when it was looked at; it is looked at again once the job is ours.
    """

    ledger: RoundLedger

    def __init__(
        self, job: OpenedJob, recipe: Recipe, watch: Callable[[Progress], None], began: float, round: Round
    ) -> None:
        super().__init__(job, recipe, watch, began)
        # Every part stays on the snapshot that it was computed on.
        self.rules = Consistency()
        self._now: PartitionTable | None = None
        self._take_up(round)

    @property
    def _is_corrected(self) -> bool:
        return True

    def _table(self) -> PartitionTable:
        if self._now is None:
            raise RuntimeError("the input of a retry is read before anything is computed")
        return self._now

    def _limits(self) -> Limits:
        # All that is left to a retry may be rows that break the model: they stay where they are.
        return replace(super()._limits(), hopeless=False)

    def _take_up(self, round: Round) -> None:
        self.round = round
        self.ledger = RoundLedger(self.job.plan, round)

    def _run(self) -> None:
        record = self.job.record
        self.reporter.enter("starting")
        confirm(record.output, record.job)
        self._fence = open_fence(record, self.recipe.workspace, self.epoch)
        self._fence.sweep()
        self._take_up(next_round(absolute_url(record.output), record.job))
        number = self.round.number
        if self.round.parts:
            save_round(self._fence, self.round)
            self.reporter.note("retry", f"retry {number} of {self.round.rows} quarantined rows, epoch {self.epoch}")
        keeper = SnapshotManager(record, self.recipe, self.epoch, number)
        sink = open_supplement(record, record.first_pin, number, self.recipe.workspace, self.epoch)
        done = list(sink.committed())
        # Once merging has begun the round has its outcome, whatever becomes of the input.
        if not has_begun_merging(self._fence.url, self.round):
            self._now = self._read_input(keeper, done)
        for commit in sink.committed():
            self.ledger.add_earlier(CommitDigest.of(commit))
        compared = {commit.partition for commit in done}

        def compute(connection: int) -> bool:
            done = {commit.partition: commit for commit in sink.committed()}
            # A worker of an earlier driver may have committed since, from the input as it was.
            late = [each for each in done.values() if each.epoch < self.epoch and each.partition not in compared]
            for partition in self._take_back_changed(late):
                del done[partition]
            compared.update(commit.partition for commit in late)
            if connection:
                self.ledger.find_more(map(CommitDigest.of, done.values()))
            left = {part.partition: part.snapshot for part in self.round.parts if part.partition not in done}
            if left:
                snapshot = min(left.values())
                chosen = {partition for partition, other in left.items() if other == snapshot}
                others = {partition: snapshot for partition in range(record.partitions) if partition not in chosen}
                self._compute(keeper, keeper.retake(snapshot), others, None, connection)
            return not left

        self._over_connections(compute)
        self.reporter.enter("sealing")
        self._lease.check()
        if self.round.parts:
            merge_round(record, keeper.log.known, self.round, self._fence)
            _log.info("retry merged", extra={"output": record.output})
        self.ledger.merge()
        delete(join_url(absolute_url(self.recipe.workspace), "activations", record.job), recursive=True)
        keeper.release()

    def _read_input(self, keeper: SnapshotManager, done: Sequence[CommitRecord]) -> PartitionTable:
        """Return the input as it is now, and take back what an earlier driver recovered of rows that are others now.

        Raises
        ------
        InputError
            Rows whose results stay in the output are others now.
        """
        record, url = self.job.record, absolute_url(self.job.record.output)
        refused = {
            part.partition: read_refused(url, record, part.partition, part.rows_quarantined)
            for part in self.round.parts
        }
        table = read_input(self.job.store, record, refused)
        self.reporter.tell("comparing the input with what was computed")
        compared = {*refused, *find_touched(self.job.store.table(), table)}
        for commit in keeper.output().committed(compared):
            if has_changed(table, commit, without=refused.get(commit.partition, frozenset())):
                raise InputError(
                    f"rows that have results in {record.output} are others in the input now, among them some of "
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
        record, url, number = self.job.record, absolute_url(self.job.record.output), self.round.number
        counts = {part.partition: part.rows_quarantined for part in self.round.parts}
        changed = []
        for commit in commits:
            refused = read_refused(url, record, commit.partition, counts[commit.partition])
            place = supplement_url(url, record.job, number, commit.epoch)
            left = read_refused(place, record, commit.partition, commit.rows_quarantined)
            if has_changed(self._table(), commit, only=refused - left):
                changed.append(commit.partition)
        take_back(record, changed, self._fence, number)
        return changed


def reopen_job(store: JobStore, recipe: Recipe, workers: Sequence[WorkerShape]) -> OpenedJob:
    """Return a job that is done, to compute some of its rows again as it would have computed them.

    Raises
    ------
    UsageError
        With today's code, libraries or workers the rows would come out otherwise than those beside them.
    """
    record = store.record()
    now, then = (
        numerics.model_dump(mode="json", exclude={"threads"})
        for numerics in (current_numerics(record, recipe, workers), record.plan.numerics)
    )
    changed = [f"{key} is {now[key]}, was {then[key]}" for key in then if now[key] != then[key]]
    if record.code != digest_source():
        changed.insert(0, "daskinfer's code is another one")
    if changed:
        raise UsageError(
            f"job {record.job} was computed otherwise than its rows would be now: {'; '.join(changed)}", hint=_FRESH
        )
    return OpenedJob(store, record, place_plan(record.plan, recipe, workers), resumed=True, done=True)
