"""Parts that are one object each: parquet and jsonl. A part appears whole under its final name, or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField
from daskinfer.storage.columns.json_text import scan_object, to_json_texts
from daskinfer.storage.columns.types import JSON, decode_type, is_text
from daskinfer.storage.columns.values import parse_json_column
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.commit_log import CommitLog, write_rejects
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.manifest import create_same
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, Written

ROW = "row"

ARROW = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "string": pa.string(),
    "bool": pa.bool_(),
}
"""Kind of a column -> Arrow's type."""


class TableSink:
    """One file a partition, `part-00000000.parquet` or `.jsonl`: column `row`, kept columns, the task's columns.

    Parameters
    ----------
    url
        The output folder.
    layout
        What its parts have in common.
    suffix
        `parquet` or `jsonl`.
    fence
        Through which it is written; by default one of the job.
    records
        What says which parts are committed; by default the output's own records.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.parquet").output
    >>> TableSink(output, open_output(output).layout, "parquet").objects(1)
    ['part-00000001.parquet']
    """

    def __init__(
        self,
        url: str,
        layout: OutputLayout,
        suffix: str,
        fence: Fence | None = None,
        records: CommitLog | None = None,
    ) -> None:
        self._url = url
        self._layout = layout
        self._suffix = suffix
        self._fence = fence or Fence(url, layout.job)
        self._commits = CommitLog(url, layout, fence=self._fence)
        self._records = records or self._commits

    def create(self) -> None:
        """Do nothing: the first part makes the folder."""

    def write(self, part: OutputPart) -> Written:
        """Write the file of a partition."""
        table = make_table(part, self._layout)
        data = _ENCODERS[self._suffix](table, self._layout.keep)
        number = part.partition.number
        (path,) = self.objects(number)
        write_rejects(self._url, part.partition, part.rejects, self._fence, self._records)
        create_same(join_url(self._url, path), data, self._fence, lambda: self._records.has(number))
        return Written(path, xxhash.xxh3_128_hexdigest(data), len(data))

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
        """Return the name of a partition's file."""
        return [f"part-{partition:08d}.{self._suffix}"]

    def _sizes(self, partition: int) -> dict[str, int | None]:
        return dict.fromkeys(self.objects(partition))  # its record has its size


def make_table(part: OutputPart, layout: OutputLayout) -> pa.Table:
    """Return a part as a table: `row`, the kept columns, the task's columns.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import OutputLayout
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> layout = OutputLayout("demo", record.fields, {}, partition_rows=2, rows=3, metadata={})
    >>> make_table(make_results(record, 1), layout).to_pylist()
    [{'row': 2, 'label': 'class-2', 'score': 1.0}]
    """
    columns: dict[str, Any] = {ROW: pa.array(part.rows)}
    columns |= {name: part.kept.column(name) for name in layout.keep}
    columns |= {field.name: _make_column(part.arrays[field.name], field) for field in layout.fields}
    return pa.table(columns).replace_schema_metadata(dict(sorted(layout.metadata.items())))


def encode_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a parquet file; equal tables give equal bytes.

    Examples
    --------
    >>> table = pa.table({"row": [0, 1], "label": ["cat", "dog"]})
    >>> encode_parquet(table) == encode_parquet(table), pq.read_table(io.BytesIO(encode_parquet(table))) == table
    (True, True)
    """
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        row_group_size=max(1, table.num_rows),
        version="2.6",
        compression="zstd",
        compression_level=1,
        # Only the page of a dictionary tells the order of what is ordered.
        use_dictionary=[field.name for field in table.schema if _is_ordered(field.type)],
        write_statistics=True,
        data_page_version="1.0",
        store_schema=True,
    )
    return stream.getvalue()


def _is_ordered(own: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(own) and own.ordered)


def encode_jsonl(table: pa.Table, keep: Collection[str] = ()) -> bytes:
    r"""Return a JSON object a row, floats of the task with the fewest digits that give the same float again, NaN as null.

    Kept columns are written as `to_json_texts` does. A table without rows gives one blank line, because stores cannot
    create empty objects safely.

    Examples
    --------
    >>> encode_jsonl(pa.table({"row": [0, 1], "score": pa.array([0.1, float("nan")], pa.float32())}))
    b'{"row":0,"score":0.1}\n{"row":1,"score":null}\n'
    """
    keys = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
    columns = [
        (to_json_texts if name in keep else _format)(column.combine_chunks())
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    template = "{" + ",".join(f"{key.replace('%', '%%')}:%s" for key in keys) + "}\n"
    lines = [template % values for values in zip(*columns, strict=True)]
    return "".join(lines or ["\n"]).encode()


_ENCODERS: Mapping[str, Callable[[pa.Table, Collection[str]], bytes]] = {
    "parquet": lambda table, keep: encode_parquet(table),
    "jsonl": encode_jsonl,
}


def decode_parquet(data: bytes, layout: OutputLayout) -> pa.Table:
    """Return the table of `encode_parquet`, kept columns in the types of the layout.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import OutputLayout
    >>> table = pa.table({"row": [0], "day": pa.array([0], pa.date64())})
    >>> layout = OutputLayout("demo", (), {"day": "date64"}, partition_rows=2, rows=1, metadata={})
    >>> decode_parquet(encode_parquet(table), layout).schema.field("day").type
    DataType(date64[ms])
    """
    table = pq.read_table(io.BytesIO(data))
    for name, text in layout.keep.items():
        own = decode_type(text)
        if table.schema.field(name).type != own:  # Parquet knows no seconds, and dates only as days
            table = table.set_column(table.column_names.index(name), name, table.column(name).cast(own))
    return table


def decode_jsonl(data: bytes, layout: OutputLayout) -> pa.Table:
    r"""Return the table of `encode_jsonl`, kept columns of other than numbers and texts as JSON; null in the task's floats comes back as NaN.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import OutputLayout
    >>> fields = (OutputField(name="score", kind="float32"),)
    >>> layout = OutputLayout("demo", fields, keep={}, partition_rows=2, rows=2, metadata={})
    >>> decode_jsonl(b'{"row":0,"score":0.1}\n{"row":1,"score":null}\n', layout).column("score").to_pylist()
    [0.10000000149011612, nan]
    """
    rows, kept = [], []
    for line in data.decode().split("\n"):
        if line:
            row, texts = scan_object(line, layout.keep)
            rows.append(row)
            kept.append(texts)
    columns: dict[str, Any] = {ROW: pa.array([row[ROW] for row in rows], pa.int64())}
    for name in layout.keep:
        values = [None if row[name] == "null" else row[name] for row in kept]
        columns[name] = _restore(values, decode_type(layout.keep[name]))
    for field in layout.fields:
        dtype = object if field.kind == "string" else field.kind
        array = np.array([row[field.name] for row in rows], dtype).reshape(len(rows), *field.shape)
        columns[field.name] = _make_column(array, field)
    return pa.table(columns)


DECODERS: Mapping[str, Callable[[bytes, OutputLayout], pa.Table]] = {
    ".parquet": decode_parquet,
    ".jsonl": decode_jsonl,
}
"""Suffix of a part -> what reads it back."""


def _restore(texts: list[str | None], own: pa.DataType) -> pa.Array:
    """Return values of numbers and texts in their type, of other types as JSON text."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if (is_text(own) and not pa.types.is_dictionary(own)) or any(kind(own) for kind in kinds):
        errors: dict[int, str] = {}
        found = parse_json_column(texts, own, "", errors)
        if not errors:
            return found
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def find_values(table: pa.Table, field: OutputField) -> NDArray[Any]:
    """Return the values of a column of the task, (rows, ...); strings as an array of objects.

    Examples
    --------
    >>> vectors = pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))
    >>> find_values(pa.table({"embedding": vectors}), OutputField(name="embedding", kind="float32", shape=(2,)))
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    column = table.column(field.name).combine_chunks()
    for _ in field.shape:
        column = column.flatten()
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, *field.shape)


def _make_column(values: NDArray[Any], field: OutputField) -> pa.Array:
    if values.shape[1:] != field.shape:
        raise ValueError(f"field {field.name} has values of shape {values.shape[1:]}, not {field.shape}")
    column = pa.array(np.ascontiguousarray(values).reshape(-1), ARROW[field.kind])
    for size in reversed(field.shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _format(column: pa.Array) -> list[str]:
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        values = _format(column.flatten())
        return [f"[{','.join(values[start : start + size])}]" for start in range(0, len(values), size)]
    if pa.types.is_floating(column.type):
        finite = pa.compute.is_finite(column)
        return pa.compute.if_else(finite, column.cast(pa.string()), "null").to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_string(column.type):
        return [json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]
    return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
