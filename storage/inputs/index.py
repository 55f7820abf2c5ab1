"""The partition table: the whole input, listed, counted and cut once at the start of a job."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from daskinfer.errors import InputError
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import InputFile, Partition, PartitionTable, Segment
from daskinfer.storage.inputs.columnar import ParquetFormat
from daskinfer.storage.inputs.files import choose_format, find_files, unchanged
from daskinfer.storage.inputs.lines import LineFormat
from daskinfer.storage.inputs.seam import InputFormat, MissingColumn, Rows

_FORMATS: dict[str, InputFormat] = {
    "jsonl": LineFormat("jsonl"),
    "csv": LineFormat("csv"),
    "text": LineFormat("text"),
    "parquet": ParquetFormat(),
}


def open_input(name: str) -> InputFormat:
    """Return the input format of a name: jsonl, csv, text or parquet."""
    return _FORMATS[name]


def index_input(section: Input, keep: Sequence[str] = ()) -> PartitionTable:
    """List the files of an input, count their rows and cut them into partitions.

    Files are read once, in flat memory; of parquet only the footers.

    Parameters
    ----------
    section
        The recipe's `input`; its url is taken as it is, so make a relative one absolute first.
    keep
        Columns that the output copies.

    Raises
    ------
    InputError
        Where nothing matches, there are no rows, a column is missing, or a file cannot be read.
    """
    files = find_files(section.url)
    name = choose_format(section.format, files)
    form = open_input(name)
    header = form.read_header(files)
    partitions = tuple(_cut(form, files, section.partition_rows))
    if not partitions:
        raise InputError(
            f"input.url: {section.url} has no rows in {len(files)} file{'s' * (len(files) > 1)}, "
            f"{sum(file.size for file in files):,} bytes in all",
            hint="Point it to files that have some.",
        )
    reads = tuple(dict.fromkeys(section.columns.values()))
    try:
        kinds = form.infer(files, partitions[0].segments, header, reads, keep)
    except MissingColumn as missing:
        raise _explain_missing(missing, section) from missing
    return PartitionTable(
        format=name,
        files=tuple(files),
        partition_rows=section.partition_rows,
        rows=sum(partition.rows for partition in partitions),
        partitions=partitions,
        columns=kinds,
        reads=reads,
        header=header,
    )


def _cut(form: InputFormat, files: Sequence[InputFile], partition_rows: int) -> Iterator[Partition]:
    segments: list[Segment] = []
    held = number = 0
    for index, rows in _scan(form, files):
        taken = 0
        while taken < len(rows):
            count = min(partition_rows - held, len(rows) - taken)
            begin, end, line = rows.bounds(taken, taken + count)
            segment = Segment(file=index, begin=begin, end=end, rows=count, line=line)
            if segments and segments[-1].file == index:
                segment = _join(segments.pop(), segment)
            segments.append(segment)
            taken += count
            held += count
            if held == partition_rows:
                yield _close(number, partition_rows, segments)
                segments, held, number = [], 0, number + 1
    if segments:
        yield _close(number, partition_rows, segments)


def _scan(form: InputFormat, files: Sequence[InputFile]) -> Iterator[tuple[int, Rows]]:
    for index, file in enumerate(files):
        with unchanged(file):
            for rows in form.scan(file):
                yield index, rows


def _join(first: Segment, second: Segment) -> Segment:
    return first.model_copy(update={"end": second.end, "rows": first.rows + second.rows})


def _close(number: int, partition_rows: int, segments: list[Segment]) -> Partition:
    rows = sum(segment.rows for segment in segments)
    return Partition(number=number, first_row=number * partition_rows, rows=rows, segments=tuple(segments))


def _explain_missing(missing: MissingColumn, section: Input) -> InputError:
    key = next((f"input.columns.{role}" for role, name in section.columns.items() if name == missing.column), None)
    close = difflib.get_close_matches(missing.column, missing.there, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return InputError(
        f"{key or 'output.keep'}: {missing.file} has no column '{missing.column}'; "
        f"it has {', '.join(missing.there) or 'none'}",
        hint=f"{guess[:1].upper()}{guess[1:]}Set {key or 'output.keep'} in the recipe.",
    )
