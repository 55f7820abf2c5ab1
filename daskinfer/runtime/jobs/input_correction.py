"""An input that was corrected in place after its job had stopped: what is computed again because of it."""

from __future__ import annotations

from collections.abc import Iterable

from daskinfer.errors import InputError, JobFailed
from daskinfer.runtime.jobs.changed_input import find_touched, has_changed, read_input
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.work import HeldJob
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.job.record import digest_files
from daskinfer.storage.jobs.poison_rows import forget_poison_records
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.job_output import open_fence, open_standing, take_back
from daskinfer.storage.outputs.sink import WholeOutput
from daskinfer.units import format_amount


class InputCorrection:
    """Another try for every row that a stopped job quarantined, and for rows that are others in the input now.

    Parameters
    ----------
    job
        The job.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.runtime.jobs.job_resolution import OpenedJob
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.storage.inputs.partition_table import index_input
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record, store = finish_job("work", "labels.jsonl"), JobStore("work", "demo")
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> store.save_table(index_input(Input(url="rows.jsonl"), {"text": "text"}))
    >>> InputCorrection(OpenedJob(store, record, record.plan, resumed=True, done=False)).table.rows
    1
    """

    def __init__(self, job: OpenedJob) -> None:
        self.table = job.store.table()
        """The input as it is now, once it was read."""
        self.retried: tuple[CommitDigest, ...] = ()
        """What was committed of the partitions with quarantined rows, which are computed again."""
        self._job = job
        self._compared: set[int] | None = None
        """Partitions that stay committed and were compared with an input that was corrected."""

    @property
    def inputs(self) -> str:
        """Digest of the input files as they are now."""
        return digest_files(self.table.files)

    @property
    def is_needed(self) -> bool:
        """Whether the input is another one than the job read last."""
        return self.inputs != self._job.store.inputs(self._job.record)

    def standing(self, workspace: str) -> Iterable[CommitDigest]:
        """Return what is committed now."""
        return open_standing(self._job.record, workspace).digests()

    def read(self) -> str:
        """Read the input as it is now; return the digest of its files.

        Raises
        ------
        InputError
            It has other rows or columns than before, or is one of a job whose snapshot may change.
        """
        record = self._job.record
        self.table = read_input(self._job.store, record, range(record.partitions))
        if self.is_needed and record.is_staged:
            raise InputError(
                f"the input of job {record.job} was changed, and its snapshot may change, so it cannot be finished on both",
                hint="Put the input back as it was, or run the job anew on the new one with --fresh.",
            )
        return self.inputs

    def take_back(self, held: HeldJob, snapshots: SnapshotManager, sink: WholeOutput) -> None:
        """Take back what is to be computed again; then the job's input is the one of now."""
        store, record, workspace = held.job.store, held.record, held.recipe.workspace
        if record.is_staged:
            return
        # What was found out about rows that have been corrected says nothing of what they are now.
        forget_poison_records(store.url)
        delete(join_url(absolute_url(workspace), "activations", record.job), recursive=True)
        self.retried = tuple(commit for commit in snapshots.standing.digests() if commit.rows_quarantined)
        again = {commit.partition for commit in self.retried}
        if is_needed := self.is_needed:
            known = {commit.partition for commit in snapshots.standing.digests()}
            again |= self._find_changed(held, sink, again)
            self._compared = known - again
        take_back(record, sorted(again), open_fence(record, workspace, held.epoch))
        if is_needed:
            # Last: a run that finds the input named here goes on with what is committed.
            store.save_inputs(self.inputs)

    def refuse_late(self, held: HeldJob, sink: WholeOutput) -> None:
        """Take back what workers of an earlier driver committed meanwhile, from the input as it was.

        Raises
        ------
        JobFailed
            There is such a partition.
        """
        if self._compared is None:
            return
        late = [
            commit.partition
            for commit in sink.committed()
            if commit.epoch < held.epoch and commit.partition not in self._compared and has_changed(self.table, commit)
        ]
        if late:
            take_back(held.record, late, open_fence(held.record, held.recipe.workspace, held.epoch))
            raise JobFailed(
                f"{format_amount(len(late), 'partition')} came from a worker of an earlier driver, which read the "
                "input as it was before",
                hint=f"Run it once more, and they are computed anew: daskinfer retry {held.record.job}",
            )

    def _find_changed(self, held: HeldJob, sink: WholeOutput, known: set[int]) -> set[int]:
        """Return the other committed partitions with rows that are others in the input now."""
        store, record = held.job.store, held.record
        held.reporter.tell("comparing the input with what was computed")
        # Which files an input that was corrected before had, nobody has written down.
        is_first = store.inputs(record) == record.inputs
        compared = find_touched(store.table(), self.table) if is_first else {*range(record.partitions)}
        changed = {commit.partition for commit in sink.committed(compared - known) if has_changed(self.table, commit)}
        if changed:
            held.reporter.note("input-changed", f"{len(changed):,} partition(s) with changed rows are computed again")
        return changed
