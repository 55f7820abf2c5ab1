"""What commit records say, many in one object: a driver that goes on need not read a hundred thousand small ones.

An index is a cache. Which records exist only a listing tells; an index saves reading those of them that it holds, for a
record never changes but in a retry, which deletes the indices first. Whatever is wrong with one, the records themselves are read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, read_bytes
from daskinfer.storage.objects.urls import join_url

INDEX_RECORDS = 1000
"""Records that are worth an index of their own."""

_INDEX = re.compile(r"index-[0-9a-f]{16}\.parquet")
_MANY_INDICES = 16
_AT_ONCE = 1000
_JOB = b"daskinfer_job"
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("partition", pa.int64()),
        ("generation", pa.int64()),
        ("snapshot", _TEXT),
        ("rows_in", pa.int64()),
        ("rows_out", pa.int64()),
        ("rows_quarantined", pa.int64()),
        ("path", pa.string()),
        ("digest", pa.string()),
        ("member", _TEXT),
        ("rows_truncated", pa.int64()),
        ("size", pa.int64()),
        ("rows_not_finite", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class CommitDigest:
    """What of a commit record decides how the job stands, and goes into the manifest; see `CommitRecord`."""

    partition: int
    generation: int
    snapshot: str
    rows_in: int
    rows_out: int
    rows_quarantined: int
    path: str
    digest: str
    member: str = ""
    rows_truncated: int = 0
    size: int = 0
    rows_not_finite: int = 0

    @classmethod
    def of(cls, record: CommitRecord) -> CommitDigest:
        """Return the digest of a record."""
        return cls(**{field.name: getattr(record, field.name) for field in fields(cls)})


class CommitIndex:
    """The indices in a folder of commit records, as one listing shows it.

    Parameters
    ----------
    folder
        Its URL.
    job
        Whose records it holds.
    names
        What the listing found.

    Examples
    --------
    >>> digest = CommitDigest(1, 0, "sha256:0", 2, 2, 0, "part-00000001.jsonl", "00")
    >>> write_index("commits", "demo", tabulate([digest]))
    True
    >>> from daskinfer.storage.objects.filesystem import list_names
    >>> CommitIndex("commits", "demo", list_names("commits")).read([0, 1])["partition"].to_pylist()
    [1]
    """

    def __init__(self, folder: str, job: str, names: Iterable[str]) -> None:
        self._folder = folder
        self._job = job
        self._names = [name for name in names if _INDEX.fullmatch(name)]

    def read(self, listed: Sequence[int]) -> pa.Table:
        """Return what the indices hold of the listed partitions, in their order."""
        pieces = [piece for name in self._names if (piece := self._read_one(name)) is not None]
        found = pa.concat_tables([_SCHEMA.empty_table(), *pieces])
        found = found.filter(pc.is_in(found["partition"], pa.array(listed, pa.int64())))
        _, first = np.unique(found["partition"].to_numpy(), return_index=True)
        return found.take(first)

    def save(self, loose: pa.Table, whole: pa.Table) -> None:
        """Keep what had to be read one by one, where that was much; many indices become one."""
        if len(self._names) > _MANY_INDICES:
            if write_index(self._folder, self._job, whole):
                with suppress(StorageError):
                    self.drop()
        elif len(loose) >= INDEX_RECORDS:
            write_index(self._folder, self._job, loose)

    def drop(self) -> None:
        """Delete the indices: a record is about to change."""
        for name in self._names:
            delete(join_url(self._folder, name))

    def _read_one(self, name: str) -> pa.Table | None:
        try:
            data = io.BytesIO(read_bytes(join_url(self._folder, name)))
            table = pq.read_table(data, page_checksum_verification=True)
            is_ours = (table.schema.metadata or {}).get(_JOB) == self._job.encode()
            if not is_ours:
                return None
            table = table.cast(_SCHEMA)
            table.validate(full=True)
            return table
        except (OSError, StorageError, ValueError, pa.ArrowException):  # gone, or not what we wrote
            return None


def write_index(folder: str, job: str, table: pa.Table) -> bool:
    """Write an index of these records; what it would have saved is lost where that fails, and no more.

    Examples
    --------
    >>> write_index("commits", "demo", tabulate([]))
    True
    """
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_JOB: job}), stream, compression="zstd", write_page_checksum=True)
    try:
        return create(join_url(folder, f"index-{make_nonce()}.parquet"), stream.getvalue())
    except StorageError:
        return False


def tabulate(digests: Iterable[CommitDigest]) -> pa.Table:
    """Return digests as a table.

    Examples
    --------
    >>> tabulate([CommitDigest(1, 0, "sha256:0", 2, 2, 0, "part-00000001.jsonl", "00")]).num_rows
    1
    """
    pieces = [_SCHEMA.empty_table()]
    rest = iter(digests)
    while some := list(islice(rest, _AT_ONCE)):
        pieces.append(pa.Table.from_pylist([asdict(digest) for digest in some], _SCHEMA))
    return pa.concat_tables(pieces)


def walk(table: pa.Table) -> Iterator[CommitDigest]:
    """Return the digests of a table, by partition.

    Examples
    --------
    >>> digest = CommitDigest(1, 0, "sha256:0", 2, 2, 0, "part-00000001.jsonl", "00")
    >>> list(walk(tabulate([digest]))) == [digest]
    True
    """
    for batch in table.sort_by("partition").to_batches(_AT_ONCE):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield CommitDigest(*row)
