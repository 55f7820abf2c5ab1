"""A retry: the quarantined rows of a job that is done, computed again and merged into its output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from daskinfer.errors import InputError, UsageError
from daskinfer.models.request import make_request
from daskinfer.planning.plan import place_plan
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.jobs.job_planner import absolute_input, current_numerics, find_wants
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.source import digest_source
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import JobRecord, Progress, digest_files
from daskinfer.spec.plan import Plan, WorkerShape
from daskinfer.spec.recipe.schema import Consistency, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.files import unchanged
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.filesystem import absolute_url, delete, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.formats import choose_output_format
from daskinfer.storage.outputs.job_output import merge_round, open_fence, open_supplement
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.retry_rounds import Round, next_round, note_inputs, save_round
from daskinfer.storage.registry.catalog import Registry

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
        self._take_up(round)

    def _table(self) -> PartitionTable:
        table = read_input(self.job.store, self.job.record, [part.partition for part in self.round.parts])
        note_inputs(self._fence, self.round, digest_files(table.files))
        return table

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
        for commit in sink.committed():
            self.ledger.add_earlier(CommitDigest.of(commit))

        def compute(connection: int) -> bool:
            done = {commit.partition: commit for commit in sink.committed()}
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


def read_input(store: JobStore, record: JobRecord, partitions: Iterable[int]) -> PartitionTable:
    """Return a job's partition table, for its input files as they are now.

    Where files of these partitions were mended in place, the input is counted and cut again: its rows must still have
    the numbers that they had.

    Raises
    ------
    InputError
        There are other files, rows or columns than before.
    """
    before = store.table()
    segments = [segment for partition in partitions for segment in before.partitions[partition].segments]
    numbers = sorted({number for segment in segments for number in (segment.file, *segment.more)})
    try:
        with unchanged([before.files[number] for number in numbers]):
            return before
    except InputError:
        section = absolute_input(record.recipe)
    registry = Registry(record.registry)
    manifest = registry.manifest(record.resolution.snapshot)
    files = {file.path: registry.file(manifest, file.path) for file in manifest.files}
    wants = find_wants(record.recipe, make_request(record.recipe, manifest, files, record.outline.inputs))
    columns = {section.columns.get(role, role): want for role, want in wants.items()}
    output = record.recipe.output
    now = index_input(section, columns, output.keep, choose_output_format(output.url, output.format))
    if difference := _find_difference(before, now):
        raise InputError(
            f"{difference}, so its rows no longer have the numbers by which job {record.job} knows them",
            hint="Mend files in place and keep all their rows, or run the job anew on the new input with --fresh.",
        )
    return now


def _find_difference(before: PartitionTable, now: PartitionTable) -> str | None:
    """Return what keeps the rows of one table from being those of the other, by number."""
    urls = [file.url for file in before.files]
    for url in sorted({*urls} ^ {file.url for file in now.files}):
        return f"{url} is {'gone' if url in urls else 'new'}"
    then, found = _count_rows(before), _count_rows(now)
    for url in urls:
        if then.get(url) != found.get(url):
            return f"{url} had {then.get(url, 0)} rows and has {found.get(url, 0)} now"
    for kind in ("columns", "arrays"):
        if getattr(before, kind) != getattr(now, kind):
            return f"the {kind} of {urls[0]} were {getattr(before, kind)} and are {getattr(now, kind)} now"
    return None


def _count_rows(table: PartitionTable) -> dict[str, int]:
    counts: dict[str, int] = {}
    for segment in (segment for partition in table.partitions for segment in partition.segments):
        url = table.files[segment.file].url
        counts[url] = counts.get(url, 0) + segment.rows
    return counts
