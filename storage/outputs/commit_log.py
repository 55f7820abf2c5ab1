"""The records of an output: commits, quarantine and manifest; the same for every format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.hidden import escape_json
from daskinfer.ids import canonical_json
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.columns.format_limits import TABLE_FORMATS
from daskinfer.storage.objects.filesystem import (
    LARGEST_MANIFEST,
    exists,
    find_files,
    list_names,
    open_filesystem,
    read_record,
)
from daskinfer.storage.objects.local_files import clear_halves
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.commit_index import CommitDigest, CommitIndex, tabulate, walk, write_index
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.manifest import create_same, name_rejects, parse_manifest, round_url
from daskinfer.storage.outputs.places import COMMITS, MANIFEST, QUARANTINE, RECORDS, RETRIES, STAGED
from daskinfer.storage.outputs.sink import OutputLayout

_PART = re.compile(rf"part-\d{{8}}\.({'|'.join(TABLE_FORMATS)})")
_PATH = re.compile(rf"(?:\*/c/|part-0*)(\d+)(?:\.(?:{'|'.join(TABLE_FORMATS)}))?")
_CHANGED = "It, or the job's job.json, was changed by hand or damaged: put it back, or start over: daskinfer run RECIPE --fresh."
_COMMIT = re.compile(r"\d{8}\.json")
_READ_AT_ONCE = 1000
_IN_MANIFEST = ("partition", "path", "digest", "rows_out", "rows_quarantined", "snapshot")


Commit = TypeVar("Commit", CommitRecord, CommitDigest)


class CommitLog:
    """The commit records of a job in `<output>/_daskinfer/commits/<job>/`, and what is made of them.

    Parameters
    ----------
    url
        The output.
    layout
        Its job and size.
    scope
        Generation whose switch these commits come after; those of different scopes never compete.
    round
        Retry whose commits these are, in its own folder; 0 for the run's.
    fence
        Through which they are written; by default one of the job.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl", refused=[0]).output
    >>> log = CommitLog(output, open_output(output).layout)
    >>> log.numbers(), log.read(0).rows_out
    ([0, 1], 1)
    """

    def __init__(
        self, url: str, layout: OutputLayout, scope: int = 0, round: int = 0, fence: Fence | None = None
    ) -> None:
        self._url = url
        self._layout = layout
        self._fence = fence or Fence(url, layout.job)
        self._commits = join_url(url, RECORDS, COMMITS, layout.job, *([f"g{scope:04d}"] if scope else []))
        if round:
            self._commits = join_url(round_url(url, layout.job, round), "commits")

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Create the record of a part; return the one that is there."""
        url = self._record_url(record.partition)
        self._check(record, url)
        if self._fence.create(url, canonical_json(record.model_dump(mode="json"))):
            return record
        winner = _parse(url, read_record(url))
        # Where snapshots may change, the attempt that commits first decides which one the partition is of. And the rows
        # that a retry recovers are other ones as soon as the user has corrected more: each epoch writes to its own folder.
        if winner.snapshot == record.snapshot and winner.digest != record.digest and not record.round:
            raise IntegrityError(
                f"two attempts at partition {record.partition} gave different bytes: {url} has {winner.digest}, "
                f"this one {record.digest}",
                hint="Workers of one job must have equal hardware and libraries; start over: daskinfer run RECIPE --fresh.",
            )
        return winner

    def has(self, partition: int) -> bool:
        """Whether a partition is committed."""
        return exists(self._record_url(partition))

    def committed(self, among: Container[int] | None = None) -> Iterator[CommitRecord]:
        """Read all records, or those of some partitions, after one listing."""
        numbers = _find_numbers(list_names(self._commits))
        return self._read(numbers if among is None else [number for number in numbers if number in among])

    def read(self, partition: int) -> CommitRecord:
        """Return the record of a partition that has one."""
        url = join_url(self._commits, f"{partition:08d}.json")
        return _parse(url, read_record(url))

    def drop_index(self) -> None:
        """Delete what was kept of these records for whoever reads them next: some are about to be replaced."""
        CommitIndex(self._commits, self._layout.job, list_names(self._commits)).drop()

    def replace(self, record: CommitRecord) -> None:
        """Put another record in the place of a partition's: that of its part with a retry's rows merged in."""
        url = self._record_url(record.partition)
        self._check(record, url)
        self._fence.replace(url, canonical_json(record.model_dump(mode="json")))

    def take_back(self, partitions: Iterable[int]) -> None:
        """Delete the records of partitions, which are to be computed again."""
        self.drop_index()
        for partition in partitions:
            self._fence.remove(self._record_url(partition))

    def numbers(self) -> list[int]:
        """Return the partitions that have a record, in order; none is read."""
        return _find_numbers(list_names(self._commits))

    def digests(self, keep: bool = False) -> Iterator[CommitDigest]:
        """Return what all records say that exist, in order; what an index holds of them is not read again.

        Parameters
        ----------
        keep
            Whether to write an index of what had to be read, for the next one who asks.
        """
        names = list_names(self._commits)
        numbers, index = _find_numbers(names), CommitIndex(self._commits, self._layout.job, names)
        held = index.read(numbers)
        loose = tabulate(map(self._digest, self._read(np.setdiff1d(numbers, held["partition"].to_numpy()).tolist())))
        whole = pa.concat_tables([held, loose])
        if keep:
            index.save(loose, whole)
        return map(self._check_digest, walk(whole))

    def keep(self, digests: Iterable[CommitDigest]) -> None:
        """Write an index of records that exist."""
        write_index(self._commits, self._layout.job, tabulate(digests))

    def inspect(self, records: Iterable[CommitDigest], objects: Callable[[int], Mapping[str, int | None]]) -> None:
        """Make sure that the files of parts are there; `objects` gives the paths of a partition's, with their sizes."""
        there: dict[str, int] | None = None
        for record in records:
            there = find_files(self._url) if there is None else there
            wanted = {**objects(record.partition)}
            if len(wanted) == 1 and not record.path.startswith("*/"):
                wanted = dict.fromkeys(wanted, record.size or None)
            if record.rows_quarantined:
                wanted[join_url(QUARANTINE, name_rejects(record.partition))] = None
            for path, size in wanted.items():
                if there.get(path, 0) and size in (None, there[path]):
                    continue
                found = f"has {there[path]} bytes, not {size}" if there.get(path) else "is gone or empty"
                raise IntegrityError(
                    f"{join_url(self._url, path)} {found}, though partition {record.partition} is committed",
                    hint=f"Put it back; or delete {self._record_url(record.partition)} and the files "
                    "index-* beside it, and run the same command again, which computes the partition anew.",
                )

    def seal(
        self,
        manifest: Mapping[str, Any],
        objects: Callable[[int], Mapping[str, int | None]],
        records: Sequence[CommitDigest] | None = None,
    ) -> bytes:
        """Create the manifest from these records, by default all; a second sealer gets the first one's bytes."""
        records = list(self.digests()) if records is None else records
        for record in records:
            self._check_digest(record)
        missing = sorted(set(range(self._layout.partitions)) - {record.partition for record in records})
        if missing or len(records) != self._layout.partitions:
            raise IntegrityError(
                f"{self._url} cannot be sealed: {len(records)} of {self._layout.partitions} partitions are committed, "
                f"the first missing one is {missing[0] if missing else 'none'}",
                hint="Run the same command again; it computes what is missing.",
            )
        self.inspect(records, objects)
        parts = [{key: getattr(record, key) for key in _IN_MANIFEST} for record in records]
        whole = {
            **manifest,
            "job": self._layout.job,
            "snapshots": sorted({record.snapshot for record in records}),
            "rows_in": self._layout.rows,
            "rows_out": sum(record.rows_out for record in records),
            "rows_quarantined": sum(record.rows_quarantined for record in records),
            "partition_rows": self._layout.partition_rows,
            "fields": [field.model_dump(mode="json") for field in self._layout.fields],
            "keep": [*map(list, self._layout.keep.items())],
            "parts": parts,
        }
        self._sweep(records)
        data = self._create_manifest(whole)
        self._fence.leave()
        return data

    def discard(self) -> None:
        """Delete the output's data and records, the manifest first so that none ever speaks of missing data."""
        self._fence.sweep()
        self._fence.remove(join_url(self._url, MANIFEST))
        for folder in (COMMITS, STAGED, RETRIES):
            self._fence.remove(join_url(self._url, RECORDS, folder), recursive=True)
        self._fence.remove(join_url(self._url, QUARANTINE), recursive=True)
        for name in list_names(self._url):
            url = join_url(self._url, name)
            if _PART.fullmatch(name) or name == "zarr.json":
                self._fence.remove(url)
            elif name not in (RECORDS, QUARANTINE) and exists(join_url(url, "zarr.json")):
                self._fence.remove(url, recursive=True)

    def _create_manifest(self, whole: Mapping[str, Any]) -> bytes:
        url, data = join_url(self._url, MANIFEST), canonical_json(whole)
        if self._fence.create(url, data):
            return data
        there = read_record(url, 4 * LARGEST_MANIFEST)
        first = parse_manifest(url, there)
        if first.get("job") != self._layout.job:  # of a former owner that came too late
            self._fence.replace(url, data)
            return data
        if first.get("parts") != whole["parts"]:
            raise IntegrityError(
                f"{url} is the manifest of other data of job {self._layout.job}",
                hint="Start over with --fresh, or choose another output.url.",
            )
        return there

    def _sweep(self, records: Sequence[CommitDigest]) -> None:
        """Delete what writers that were killed, or came too late, have left in a whole output."""
        self._fence.sweep(whole=True)
        clear_halves(self._url)
        for folder in (COMMITS, STAGED, RETRIES):
            for job in list_names(join_url(self._url, RECORDS, folder)):
                if job != self._layout.job:
                    self._fence.remove(join_url(self._url, RECORDS, folder, job), recursive=True)
        paths = {record.path for record in records}
        for name in list_names(self._url):
            if _PART.fullmatch(name) and name not in paths:
                self._fence.remove(join_url(self._url, name))
        refused = {name_rejects(record.partition) for record in records if record.rows_quarantined}
        for name in list_names(join_url(self._url, QUARANTINE)):
            if name not in refused:
                self._fence.remove(join_url(self._url, QUARANTINE, name))

    def _record_url(self, partition: int) -> str:
        return join_url(self._commits, f"{partition:08d}.json")

    def _read(self, numbers: Sequence[int]) -> Iterator[CommitRecord]:
        filesystem, folder = open_filesystem(self._commits)
        for start in range(0, len(numbers), _READ_AT_ONCE):
            paths = [join_url(folder, f"{number:08d}.json") for number in numbers[start : start + _READ_AT_ONCE]]
            with explain_errors(self._commits, "read"):
                # Not cat(), which takes brackets in a path for a pattern.
                found = filesystem.cat_ranges(paths, None, None, on_error="raise")
            for number, path, data in zip(numbers[start : start + _READ_AT_ONCE], paths, found, strict=True):
                record = _parse(path, data)
                if record.partition != number:
                    raise IntegrityError(f"{path} is the record of partition {record.partition}", hint=_CHANGED)
                yield record

    def _digest(self, record: CommitRecord) -> CommitDigest:
        self._check(record, self._record_url(record.partition))
        return CommitDigest.of(record)

    def _check(self, record: CommitRecord, url: str) -> None:
        if record.job != self._layout.job or not 0 <= record.partition < self._layout.partitions:
            raise IntegrityError(
                f"{url}: the record of partition {record.partition} of job {record.job} is not of this output",
                hint=_CHANGED,
            )
        self._check_digest(record)

    def _check_digest(self, record: Commit) -> Commit:
        """Return a record that is of this job's snapshots, rows and parts."""
        place = self._record_url(record.partition)
        wanted = self._layout.snapshots.get(record.generation)
        if self._layout.snapshots and record.snapshot != wanted:
            raise IntegrityError(
                f"{place}, or an index beside it, says that partition {record.partition} was computed on "
                f"{record.snapshot} (generation {record.generation}), but job {self._layout.job} computes it on {wanted}",
                hint=_CHANGED,
            )
        if not _PATH.fullmatch(record.path) or int(_PATH.fullmatch(record.path)[1]) != record.partition:  # type: ignore[index]
            raise IntegrityError(f"{place} says that partition {record.partition} is in {record.path}", hint=_CHANGED)
        expected = self._layout.rows_of(record.partition)
        if record.rows_in != expected or record.rows_out + record.rows_quarantined != expected:
            raise IntegrityError(
                f"{place}: the rows of partition {record.partition} do not add up: it has {expected}; {record.rows_in} came in, "
                f"{record.rows_out} went out and {record.rows_quarantined} were quarantined",
                hint=_CHANGED,
            )
        return record


def _find_numbers(names: Iterable[str]) -> list[int]:
    return [int(name[:8]) for name in names if _COMMIT.fullmatch(name)]


def find_merged(url: str, layout: OutputLayout, partition: int, after: int) -> CommitRecord | None:
    """Return the record of a partition in the newest retry that has one, of those after the first `after`.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl").output
    >>> find_merged(output, open_output(output).layout, 0, after=0) is None
    True
    """
    rounds = [int(name) for name in list_names(join_url(url, RECORDS, RETRIES, layout.job)) if int(name) > after]
    for number in sorted(rounds, reverse=True):
        try:
            return CommitLog(url, layout, round=number).read(partition)
        except FileNotFoundError:
            continue
    return None


def write_rejects(url: str, partition: Partition, rejects: Sequence[Reject], fence: Fence, records: CommitLog) -> None:
    """Write the quarantine file of a partition, where it has rejects; `records` say what is committed.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job, make_results
    >>> record = finish_job("work", "labels.jsonl")
    >>> part = make_results(record, 0, refused=[1])
    >>> log = CommitLog(record.output, open_output(record.output).layout)
    >>> write_rejects(record.output, part.partition, part.rejects, Fence(record.output, "demo"), log)
    >>> list_names(join_url(record.output, QUARANTINE))
    ['part-00000000.jsonl']
    """
    if rejects:
        lines = [escape_json(json.dumps(asdict(reject), ensure_ascii=False)) for reject in rejects]
        place = join_url(url, QUARANTINE, name_rejects(partition.number))
        # A lone surrogate, which UTF-8 cannot carry, becomes the escape that JSON has for it.
        data = ("\n".join(lines) + "\n").encode(errors="backslashreplace")
        create_same(place, data, fence, lambda: records.has(partition.number))


def _parse(url: str, data: bytes) -> CommitRecord:
    try:
        return CommitRecord.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{url} is not a commit record",
            hint="It was damaged or changed by hand: put it back; or delete it and the files index-* beside it, and run "
            "the same command again, which computes the partition anew.",
        ) from error
