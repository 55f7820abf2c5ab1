"""The rest of a job that stopped, on its input as it is now: rows may have been corrected in place since."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from daskinfer.errors import InputError, JobFailed
from daskinfer.runtime.jobs.changed_input import find_touched, has_changed, read_input
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.job.record import Progress, digest_files
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs.poison_rows import forget_poison_records
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.job_output import open_fence, open_standing, take_back
from daskinfer.storage.outputs.sink import WholeOutput
from daskinfer.units import format_amount


class FinishSession(RunSession):
    """One driver's part in finishing a job that stopped, with another try for every row that was quarantined.

    Parameters
    ----------
    job, recipe, watch, began
        See `RunSession`.
    """

    def __init__(self, job: OpenedJob, recipe: Recipe, watch: Callable[[Progress], None], began: float) -> None:
        super().__init__(job, recipe, watch, began)
        self.retried: tuple[CommitDigest, ...] = ()
        """What was committed of the partitions with quarantined rows, which are computed again."""
        self._now = job.store.table()
        self._compared: set[int] | None = None
        """Partitions that stay committed and were compared with an input that was corrected."""

    def standing(self) -> Iterable[CommitDigest]:
        """Return what is committed now."""
        return open_standing(self.job.record, self.recipe.workspace).digests()

    def _open_output(self, keeper: SnapshotManager) -> WholeOutput:
        store, record = self.job.store, self.job.record
        self._now = read_input(store, record, range(record.partitions))
        self.inputs = digest_files(self._now.files)
        is_corrected = self.inputs != store.inputs(record)
        if is_corrected and record.is_staged:
            raise InputError(
                f"the input of job {record.job} was changed, and its snapshot may change, so it cannot be finished on both",
                hint="Put the input back as it was, or run the job anew on the new one with --fresh.",
            )
        sink = super()._open_output(keeper)
        if record.is_staged:
            return sink
        # What was found out about rows that have been corrected says nothing of what they are now.
        forget_poison_records(store.url)
        delete(join_url(absolute_url(self.recipe.workspace), "activations", record.job), recursive=True)
        self.retried = tuple(commit for commit in keeper.standing.digests() if commit.rows_quarantined)
        again = {commit.partition for commit in self.retried}
        if is_corrected:
            known = {commit.partition for commit in keeper.standing.digests()}
            again |= self._find_changed(sink, again)
            self._compared = known - again
        take_back(record, sorted(again), open_fence(record, self.recipe.workspace, self.epoch))
        if is_corrected:
            # Last: a run that finds the input named here goes on with what is committed.
            store.save_inputs(self.inputs)
        return sink

    def _seal(self, keeper: SnapshotManager, sink: WholeOutput) -> None:
        if self._compared is not None:
            late = [
                commit.partition
                for commit in sink.committed()
                if commit.epoch < self.epoch
                and commit.partition not in self._compared
                and has_changed(self._now, commit)
            ]
            if late:
                take_back(self.job.record, late, open_fence(self.job.record, self.recipe.workspace, self.epoch))
                raise JobFailed(
                    f"{format_amount(len(late), 'partition')} came from a worker of an earlier driver, which read the "
                    "input as it was before",
                    hint=f"Run it once more, and they are computed anew: daskinfer retry {self.job.record.job}",
                )
        super()._seal(keeper, sink)

    def _find_changed(self, sink: WholeOutput, known: set[int]) -> set[int]:
        """Return the other committed partitions with rows that are others in the input now."""
        store, record = self.job.store, self.job.record
        self.reporter.tell("comparing the input with what was computed")
        # Which files an input that was corrected before had, nobody has written down.
        is_first = store.inputs(record) == record.inputs
        compared = find_touched(store.table(), self._now) if is_first else {*range(record.partitions)}
        changed = {commit.partition for commit in sink.committed(compared - known) if has_changed(self._now, commit)}
        if changed:
            self.reporter.note("input-changed", f"{len(changed):,} partition(s) with changed rows are computed again")
        return changed

    @property
    def _is_corrected(self) -> bool:
        return True

    def _table(self) -> PartitionTable:
        return self._now
