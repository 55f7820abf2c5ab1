"""Zarr outputs: an array a column, aligned with the input by index, and exactly one chunk of each a partition."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from daskinfer.errors import StorageError
from daskinfer.ids import canonical_json
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.rows import Partition
from daskinfer.storage.columns.numpy import Elements, elements_of, to_numpy
from daskinfer.storage.columns.types import decode_type
from daskinfer.storage.objects.create_if_absent import sync_folder
from daskinfer.storage.objects.plain_store import open_store
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.commit_log import CommitLog, write_rejects
from daskinfer.storage.outputs.fence import Fence, create
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, Written

VALID = "valid"


@dataclass(frozen=True, slots=True)
class _Column:
    """An array of the group."""

    name: str
    elements: Elements


class ZarrSink:
    """A Zarr v3 group. A refused row holds NaN, NaT, 0 or "" in every array and False in `valid`.

    Parameters
    ----------
    url
        The group.
    layout
        What its parts have in common.
    fence
        Through which it is written; by default one of the job.
    records
        What says which parts are committed; by default the output's own records.

    Examples
    --------
    >>> from daskinfer.spec.job.record import OutputField
    >>> fields = (OutputField(name="score", kind="float32"),)
    >>> layout = OutputLayout("demo", fields, keep={}, partition_rows=2, rows=3, metadata={})
    >>> ZarrSink("scores.zarr", layout).objects(1)
    ['score/c/1', 'valid/c/1']
    """

    def __init__(
        self, url: str, layout: OutputLayout, fence: Fence | None = None, records: CommitLog | None = None
    ) -> None:
        self._url = url
        self._layout = layout
        self._fence = fence or Fence(url, layout.job)
        self._commits = CommitLog(url, layout, fence=self._fence)
        self._records = records or self._commits

    def create(self) -> None:
        """Make the group, its arrays and their consolidated metadata."""
        made: dict[str, Any] = {}
        with explain_errors(self._url, "create"), warnings.catch_warnings():
            # Listing the group meets our records beside the arrays, which are no nodes; consolidated metadata works
            # everywhere that we know but is not in the v3 specification yet.
            warnings.filterwarnings("ignore", "Object at .* is not recognized as a component of a Zarr hierarchy")
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part in the Zarr format 3")
            store = MemoryStore(made)
            group = zarr.create_group(store, zarr_format=3)
            group.attrs.update({"daskinfer_job": self._layout.job, **dict(sorted(self._layout.metadata.items()))})
            for column in _columns_of(self._layout):
                group.create_array(column.name, **_settings_of(column, self._layout, self._layout.rows))
            zarr.consolidate_metadata(store)
        for path, value in sorted(made.items()):
            url, data = join_url(self._url, path), value.to_bytes()
            if not create(url, data, self._fence):
                self._fence.replace(url, data)

    def write(self, part: OutputPart) -> Written:
        """Write one chunk of every array. What is committed is never written over, however late an attempt comes."""
        write_rejects(self._url, part.partition, part.rejects, self._fence, self._records)
        digest, size = xxhash.xxh3_128(), 0
        for column in _columns_of(self._layout):
            values = _spread(column, _values_of(column, part), part)
            raw = _encode(column, values)
            digest.update(raw)
            size += len(raw)
            path = [column.name, *_chunk_path(column, part.partition.number)]
            url = join_url(self._url, *path)
            chunk = self._make_chunk(column, values)
            # Other bytes are of an attempt that ended before its commit, or that was made elsewhere: the record decides.
            if not create(url, chunk, self._fence) and not self._records.has(part.partition.number):
                self._fence.replace(url, chunk)
            if is_local(url):
                try:
                    _make_durable(Path(absolute_url(self._url)), path)
                except FileNotFoundError as error:
                    self._fence.confirm()  # says who deleted it
                    raise StorageError(f"{url} was deleted while it was written", hint="Find out by whom.") from error
        return Written(f"*/c/{part.partition.number}", digest.hexdigest(), size)

    def _make_chunk(self, column: _Column, values: NDArray[Any]) -> bytes:
        """Return the bytes of a chunk as Zarr writes them."""
        stored: dict[str, Any] = {}
        array = zarr.create_array(
            MemoryStore(stored),
            # Without it a chunk of refused rows would be left out; the setting is not stored with the array.
            config={"write_empty_chunks": True},
            **_settings_of(column, self._layout, self._layout.partition_rows),
        )
        array[: len(values)] = values
        data: bytes = stored["/".join(_chunk_path(column, 0))].to_bytes()
        return data

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Create the commit record of a part."""
        return self._commits.commit(record)

    def committed(self, among: Container[int] | None = None) -> Iterator[CommitRecord]:
        """Return all commit records, or those of some partitions."""
        return self._commits.committed(among)

    def inspect(self, records: Iterable[CommitDigest]) -> None:
        """Make sure that the files of committed parts are there."""
        self._commits.inspect(records, self._sizes)

    def seal(self, manifest: Mapping[str, Any]) -> bytes:
        """Create the manifest."""
        return self._commits.seal(manifest, self._sizes)

    def discard(self) -> None:
        """Delete everything but the log of owners."""
        self._commits.discard()

    def objects(self, partition: int) -> list[str]:
        """Return the paths of a partition's chunks; `valid` is the last, as it says which rows the others hold."""
        columns = sorted(_columns_of(self._layout), key=lambda column: column.name == VALID)
        return ["/".join([column.name, *_chunk_path(column, partition)]) for column in columns]

    def _sizes(self, partition: int) -> dict[str, int | None]:
        """Return the paths of a partition's chunks, with their sizes where these follow from their types."""
        rows, columns = self._layout.partition_rows, {column.name: column for column in _columns_of(self._layout)}
        return {path: _size_of(columns[path.partition("/")[0]], rows) for path in self.objects(partition)}


def read_arrays(url: str, layout: OutputLayout, partition: Partition) -> tuple[dict[str, NDArray[Any]], str]:
    """Read one chunk of every array of a group: what `ZarrSink.write` wrote.

    Returns
    -------
    dict
        Array name -> (rows, ...) values, `valid` and kept columns among them; strings as objects.
    str
        Their digest.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.zarr", refused=[1])
    >>> first = Partition(number=0, first_row=0, rows=2, segments=())
    >>> arrays, digest = read_arrays(record.output, open_output(record.output).layout, first)
    >>> arrays["label"], arrays["valid"]
    (array(['class-0', ''], dtype=object), array([ True, False]))
    """
    digest = xxhash.xxh3_128()
    chunks = {}
    first, last = partition.first_row, partition.first_row + partition.rows
    with explain_errors(url, "read"):
        group: Any = zarr.open_group(open_store(url), mode="r")
        for column in _columns_of(layout):
            array = group[column.name]
            _check_array(url, array, column, layout, partition)
            values = np.asarray(array[first:last])
            chunks[column.name] = values.astype(object) if column.elements.dtype == "string" else values
            digest.update(_encode(column, values))
    return chunks, digest.hexdigest()


def _check_array(url: str, array: Any, column: _Column, layout: OutputLayout, partition: Partition) -> None:
    """Raise `ValueError` where an array is not as it was made, or its chunk has another size: whoever reads it takes its word."""
    wanted = _settings_of(column, layout, layout.partition_rows)
    if array.shape[1:] != wanted["shape"][1:] or array.chunks != wanted["chunks"] or array.compressors or array.filters:
        raise ValueError(f"the metadata of {column.name} are not those that were written")
    size = _size_of(column, layout.partition_rows)
    place = Path(absolute_url(url), column.name, *_chunk_path(column, partition.number))
    if is_local(url) and size is not None and place.is_file() and place.stat().st_size != size:
        raise ValueError(f"{place} has {place.stat().st_size:,} bytes, and {size:,} were written")


def _columns_of(layout: OutputLayout) -> list[_Column]:
    columns = [_Column(field.name, Elements(field.kind, field.shape)) for field in layout.fields]
    for name, text in layout.keep.items():
        elements = elements_of(decode_type(text))
        if elements is None:
            raise ValueError(f"Zarr cannot hold column {name}")
        columns.append(_Column(name, elements))
    return sorted([*columns, _Column(VALID, Elements("bool"))], key=lambda column: column.name)


def _settings_of(column: _Column, layout: OutputLayout, rows: int) -> dict[str, Any]:
    """Return what makes the array of a column, of so many rows."""
    shape = column.elements.shape
    return {
        "shape": (rows, *shape),
        "chunks": (layout.partition_rows, *shape),
        "dtype": column.elements.dtype,
        "fill_value": column.elements.fill,
        "compressors": None,
        # Every axis but the rows is the array's own: another one of the same length is another axis.
        "dimension_names": ["row", *(f"{column.name}_{axis}" for axis in range(1, len(shape) + 1))],
    }


def _size_of(column: _Column, rows: int) -> int | None:
    """Return the bytes of a whole chunk, which is stored as it is in memory; None for texts."""
    if column.elements.dtype == "string":
        return None
    return rows * math.prod(column.elements.shape) * np.dtype(column.elements.dtype).itemsize


def _encode(column: _Column, values: NDArray[Any]) -> bytes:
    """Return what the digest of a part is made of."""
    return canonical_json(values.tolist()) if column.elements.dtype == "string" else values.tobytes()


def _values_of(column: _Column, part: OutputPart) -> NDArray[Any]:
    if column.name == VALID:
        return np.ones(len(part.positions), np.bool_)
    if column.name in part.arrays:
        return part.arrays[column.name]
    return to_numpy(part.kept.column(column.name), column.elements)


def _spread(column: _Column, values: NDArray[Any], part: OutputPart) -> NDArray[Any]:
    """Return the values with gaps for the rows that have none."""
    if values.shape != (len(part.positions), *column.elements.shape):
        raise ValueError(f"{column.name} has values of shape {values.shape}, not rows of {column.elements.shape}")
    spread = column.elements.empty(part.partition.rows)
    spread[part.positions] = values
    return spread


def _chunk_path(column: _Column, partition: int) -> list[str]:
    return ["c", str(partition), *("0" for _ in column.elements.shape)]


def _make_durable(output: Path, path: list[str]) -> None:
    """Bring the folders that name a chunk to the disk, so that no commit record outlives its data."""
    place = output.joinpath(*path)
    for folder in place.parents[: len(path) - 1]:
        sync_folder(folder)
