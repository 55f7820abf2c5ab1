"""One partition: what a worker is told of it, and the rows it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from daskinfer.errors import InputError
from daskinfer.spec.recipe.dialect import Csv
from daskinfer.spec.rows import InputFile, Partition, PartitionTable, Reject
from daskinfer.storage.columns.format_limits import find_misfits
from daskinfer.storage.columns.types import JSON, decode_type, is_text
from daskinfer.storage.inputs.files import unchanged
from daskinfer.storage.inputs.interface import Layout, MissingColumn, ParsedRows
from daskinfer.storage.inputs.partition_table import open_input
from daskinfer.storage.inputs.row_batch import RowBatch


@dataclass(frozen=True, slots=True)
class PartitionSource:
    """All that a worker must know to read one partition."""

    format: str
    """jsonl, csv, text, parquet, images or zarr."""
    partition: Partition
    """Which rows."""
    files: tuple[tuple[InputFile, ...], ...]
    """The files of each of its segments."""
    layout: Layout
    """Columns and their types."""
    csv: Csv
    """csv: how the files are written."""


def partition_source(table: PartitionTable, number: int) -> PartitionSource:
    r"""Return what a worker needs of the partition table to read one partition.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.storage.inputs.partition_table import index_input
    >>> _ = Path("a.txt").write_text("one\ntwo\nthree\n")
    >>> source = partition_source(index_input(Input(url="a.txt", partition_rows=2), {"text": "text"}), 1)
    >>> source.partition.first_row, source.partition.rows, source.format
    (2, 1, 'text')
    """
    partition = table.partitions[number]
    return PartitionSource(
        format=table.format,
        partition=partition,
        files=tuple(
            tuple(table.files[index] for index in (segment.file, *segment.more)) for segment in partition.segments
        ),
        layout=Layout(
            types={column: decode_type(name) for column, name in table.columns.items()},
            reads=table.reads,
            header=table.header,
            arrays=table.arrays,
            output=table.output,
        ),
        csv=table.csv,
    )


def read_partition(source: PartitionSource) -> RowBatch:
    r"""Read the rows of a partition.

    Returns
    -------
    RowBatch
        Rows that cannot be read, or whose values do not fit, are among its rejects.

    Raises
    ------
    InputError
        Where a file is not what it was when the table was made.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.spec.recipe.schema import Input
    >>> from daskinfer.storage.inputs.partition_table import index_input
    >>> _ = Path("a.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    >>> rows = read_partition(partition_source(index_input(Input(url="a.jsonl"), {"text": "text"}), 0))
    >>> rows.values("text"), [(reject.line, reject.error) for reject in rows.rejects]
    (['one'], [(2, "column 'text': is null")])
    """
    form = open_input(source.format, source.csv)
    partition = source.partition
    schema = pa.schema(list(source.layout.types.items()))
    positions: list[int] = []
    lines: list[int] = []
    sources: list[str] = []
    rejects: list[Reject] = []
    tables: list[pa.Table] = []
    arrays = {name: [np.empty((0, *column.shape), column.dtype)] for name, column in source.layout.arrays.items()}
    offset = 0
    for files, segment in zip(source.files, partition.segments, strict=True):
        with unchanged(files):
            try:
                harvest = form.read(files, segment, source.layout)
            except MissingColumn as missing:
                raise InputError(f"{files[0].url} has no column '{missing.column}' any more") from missing
        _check_count(harvest, segment.rows, files[0])
        urls = harvest.sources or [files[0].url] * segment.rows
        positions += [offset + position for position in harvest.offsets]
        lines += harvest.lines
        sources += [urls[position] for position in harvest.offsets]
        tables.append(pa.table(harvest.columns, schema=schema))
        for name, pieces in arrays.items():
            values = np.asarray(harvest.arrays[name], pieces[0].dtype)
            pieces.append(values.reshape(len(harvest.offsets), *pieces[0].shape[1:]))
        rejects += [
            Reject(partition.first_row + offset + position, urls[position], line, error, excerpt)
            for position, line, error, excerpt in harvest.refused
        ]
        offset += segment.rows
    rows = RowBatch(
        partition=partition,
        positions=np.array(positions, np.int32),
        lines=np.array(lines, np.int64),
        sources=tuple(sources),
        table=pa.concat_tables(tables).combine_chunks(),
        rejects=tuple(rejects),
        arrays={name: pieces[1] if len(pieces) == 2 else np.concatenate(pieces) for name, pieces in arrays.items()},
    )
    kept = rows.table
    if source.format == "jsonl":  # whose texts were read as JSON
        kept = kept.select([field.name for field in kept.schema if field.type != JSON])
    misfits = {int(rows.positions[index]): why for index, why in find_misfits(kept, source.layout.output).items()}
    misfits = _find_empty(rows, source.layout) | misfits
    return rows.without(misfits, dict.fromkeys(misfits, "unreadable"))


def _find_empty(rows: RowBatch, layout: Layout) -> dict[int, str]:
    """Return why texts that the task reads are none, by their positions."""
    found: dict[int, str] = {}
    for column in layout.reads:
        if not (is_text(layout.types[column]) or layout.types[column] == JSON):
            continue
        for position, text in zip(rows.positions.tolist(), rows.values(column), strict=True):
            if not text or text.isspace():
                found[position] = f"column '{column}': {'holds only whitespace' if text else 'is empty'}"
            elif "\0" in text:
                found[position] = f"column '{column}': holds a NUL character; is input.encoding right?"
    return found


def _check_count(harvest: ParsedRows, wanted: int, file: InputFile) -> None:
    found = len(harvest.offsets) + len(harvest.refused)
    if found != wanted:
        raise InputError(
            f"{file.url} changed while the job ran: {wanted} rows were counted in a part of it, {found} are there now",
            hint="Put the old file back and run the same command, or start over on the new one with --fresh.",
        )
