"""The seam between a job and an output format."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.outputs.commit_index import CommitDigest


@dataclass(frozen=True, slots=True, eq=False)
class OutputPart:
    """The results of one partition."""

    partition: Partition
    """Which rows."""
    positions: NDArray[np.int32]
    """Position in the partition of every row with a result, ascending: n of them."""
    arrays: Mapping[str, NDArray[Any]]
    """Field -> (n, ...) values; strings as an array of objects."""
    kept: pa.Table
    """Input columns copied to the output, n rows."""
    rejects: tuple[Reject, ...]
    """The other rows."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Global row numbers of the results, (n,) int64."""
        return self.positions.astype(np.int64) + self.partition.first_row


@dataclass(frozen=True, slots=True)
class Written:
    """What a sink wrote for a partition."""

    path: str
    """Relative to the output; for Zarr a pattern over its arrays."""
    digest: str
    """xxh3-128 of the bytes, hex."""
    bytes: int
    """Bytes written."""


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """What every part of an output has in common."""

    job: str
    """Job id."""
    fields: tuple[OutputField, ...]
    """Columns that the task writes."""
    keep: Mapping[str, str]
    """Kept input column -> type, as records name it, in the order of the output."""
    partition_rows: int
    """Rows of every partition but the last."""
    rows: int
    """Rows of the input."""
    metadata: Mapping[str, str]
    """Provenance that is stored with the data."""
    snapshots: Mapping[int, str] = field(default_factory=dict)
    """Generation -> the snapshot that its commits must be of; empty where they are not compared."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return -(-self.rows // self.partition_rows)

    def rows_of(self, partition: int) -> int:
        """Return how many rows a partition has."""
        return min(self.partition_rows, self.rows - partition * self.partition_rows)


class PartSink(Protocol):
    """Where the results of a partition go. Every effect happens once, however often it is tried."""

    def write(self, part: OutputPart) -> Written:
        """Write a part and its quarantine; it does not exist until it is committed.

        Raises
        ------
        IntegrityError
            Where another attempt wrote other bytes.
        StorageError
            Where the store refuses or is full.
        """

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Make a written part exist, and return the record that does: another attempt's where that came first."""


class WholeOutput(Protocol):
    """All results of a job, as its driver sees them."""

    def create(self) -> None:
        """Prepare the output; idempotent."""

    def committed(self, among: Container[int] | None = None) -> Iterator[CommitRecord]:
        """Return the records of all parts that exist, in order, or those of some partitions."""

    def inspect(self, records: Iterable[CommitDigest]) -> None:
        """Make sure that the files of committed parts are there, in their sizes as far as these are known.

        Raises
        ------
        IntegrityError
            One is gone, or has another size.
        """

    def seal(self, manifest: Mapping[str, Any]) -> bytes:
        """Declare the output whole by its manifest, and return the manifest's bytes.

        Raises
        ------
        IntegrityError
            Where a partition is missing or the rows do not add up, a commit is of another snapshot than the job's, or a
            part is not there.
        """

    def discard(self) -> None:
        """Delete everything but the log of owners."""


class Sink(PartSink, WholeOutput, Protocol):
    """An output in one format, written to by all attempts."""

    def objects(self, partition: int) -> list[str]:
        """Return the paths of what a partition's part consists of, relative to the output; quarantine aside."""
