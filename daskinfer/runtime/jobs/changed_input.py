"""The input of a job whose rows were corrected in place: as it is now, and which results belong to rows that have changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from daskinfer.errors import InputError, IntegrityError
from daskinfer.graphs.task_request import load_task_request
from daskinfer.runtime.jobs.request_resolution import absolute_input, find_wants
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import JobRecord, digest_files
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.files import unchanged
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.formats import choose_output_format
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.row_digest import digest_rows
from daskinfer.storage.registry.catalog import Registry


def read_table(store: JobStore, record: JobRecord, inputs: str) -> PartitionTable:
    """Return the partition table of the input files with this digest: those that a job began with, or corrected ones.

    Raises
    ------
    InputError
        They are others by now.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> JobStore("work", "demo").save_table(index_input(Input(url="rows.jsonl"), {"text": "text"}))
    >>> read_table(JobStore("work", "demo"), record, record.inputs).rows
    1
    """
    if inputs == record.inputs:
        return store.table()
    table = read_input(store, record, range(record.partitions))
    if digest_files(table.files) != inputs:
        raise InputError(
            f"the input of job {record.job} was changed a moment ago", hint="Run the same command once more."
        )
    return table


def read_input(store: JobStore, record: JobRecord, partitions: Iterable[int]) -> PartitionTable:
    """Return a job's partition table, for its input files as they are now.

    Where files of these partitions were corrected in place, the input is counted and cut again: its rows must still have
    the numbers that they had.

    Raises
    ------
    InputError
        There are other files, rows or columns than before.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> JobStore("work", "demo").save_table(index_input(Input(url="rows.jsonl"), {"text": "text"}))
    >>> read_input(JobStore("work", "demo"), record, [0]).rows
    1
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
    request = load_task_request(registry, record.recipe.model, manifest, record.outline.inputs)
    wants = find_wants(record.recipe, request)
    columns = {section.columns.get(role, role): want for role, want in wants.items()}
    output = record.recipe.output
    now = index_input(section, columns, output.keep, choose_output_format(output.url, output.format))
    if difference := _find_difference(before, now):
        raise InputError(
            f"{difference}, so its rows no longer have the numbers by which job {record.job} knows them",
            hint="Correct files in place and keep all their rows, or run the job anew on the new input with --fresh.",
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


def find_touched(before: PartitionTable, now: PartitionTable) -> set[int]:
    """Return the partitions with rows in files that are not what they were.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> before = index_input(Input(url="rows.jsonl"), {"text": "text"})
    >>> _ = Path("rows.jsonl").write_text('{"text": "a small river"}')
    >>> find_touched(before, index_input(Input(url="rows.jsonl"), {"text": "text"}))
    {0}
    """
    changed = {file.url for file in {*before.files} ^ {*now.files}}
    return {
        partition.number
        for partition in now.partitions
        if any(now.files[number].url in changed for each in partition.segments for number in (each.file, *each.more))
    }


def read_refused(url: str, record: JobRecord, partition: int, count: int) -> frozenset[int]:
    """Return which rows of a partition are in an output's quarantine, by their positions.

    Parameters
    ----------
    url, record, partition
        The output, its job and the partition.
    count
        How many they are.

    Raises
    ------
    IntegrityError
        They are not there.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl", refused=[1])
    >>> read_refused(record.output, record, partition=0, count=1)
    frozenset({1})
    """
    if not count:
        return frozenset()
    first = partition * record.recipe.input.partition_rows
    found = frozenset(reject.row - first for reject in read_rejects(url, partition))
    if len(found) != count:
        raise IntegrityError(
            f"the quarantine of {url} holds {len(found)} rows of partition {partition}, and {count} were refused",
            hint="Files of it were changed: put them back, or make the output again with --fresh.",
        )
    return found


def has_changed(
    now: PartitionTable,
    commit: CommitRecord,
    only: Collection[int] | None = None,
    without: Collection[int] = (),
) -> bool:
    """Whether rows of a committed partition are others in the input now.

    Parameters
    ----------
    now
        The input.
    commit
        What was written down when they were computed.
    only
        Positions of the rows that it is of; by default all.
    without
        Positions of rows that it is not of.

    Examples
    --------
    >>> from pathlib import Path
    >>> from types import SimpleNamespace
    >>> from daskinfer.spec.recipe.schema import Input
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> table = index_input(Input(url="rows.jsonl"), {"text": "text"})
    >>> digest = digest_rows(read_partition(partition_source(table, 0)))
    >>> has_changed(table, SimpleNamespace(partition=0, rows_digest=digest))
    False
    """
    rows = read_partition(partition_source(now, commit.partition))
    wanted = range(rows.partition.rows) if only is None else only
    return digest_rows(rows.only({*wanted}.difference(without))) != commit.rows_digest


def describe_rows(record: JobRecord, partition: int) -> str:
    """Return the numbers of a partition's rows, for people.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> describe_rows(make_job("labels.jsonl", rows=5), 1)
    'rows 2 to 3'
    """
    first = partition * record.recipe.input.partition_rows
    return f"rows {first:,} to {min(first + record.recipe.input.partition_rows, record.rows) - 1:,}"
