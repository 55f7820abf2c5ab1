"""The partition table: the whole input, listed, counted and cut once at the start of a job."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from daskinfer.errors import InputError
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import Partitions, PartitionTable, Want
from daskinfer.storage.inputs.columnar import ParquetFormat
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.inputs.groups import ZarrFormat
from daskinfer.storage.inputs.images import ImageFormat
from daskinfer.storage.inputs.lines import LineFormat
from daskinfer.storage.inputs.seam import InputFormat, MissingColumn

_FORMATS: dict[str, InputFormat] = {
    "jsonl": LineFormat("jsonl"),
    "csv": LineFormat("csv"),
    "text": LineFormat("text"),
    "parquet": ParquetFormat(),
    "images": ImageFormat(),
    "zarr": ZarrFormat(),
}


def open_input(name: str) -> InputFormat:
    """Return the input format of a name: jsonl, csv, text, parquet, images or zarr."""
    return _FORMATS[name]


def index_input(section: Input, wants: Mapping[str, Want], keep: Sequence[str] = ()) -> PartitionTable:
    """List the files of an input, count their rows and cut them into partitions.

    Files of lines are read once, in flat memory; of parquet only the footers, of Zarr the metadata, of images nothing.

    Parameters
    ----------
    section
        The recipe's `input`; its url is taken as it is, so make a relative one absolute first.
    wants
        Column -> what the task reads it as.
    keep
        Columns that the output copies.

    Raises
    ------
    InputError
        Where nothing matches, there are no rows, a column is missing or not what is wanted, or a file cannot be read.
    """
    found = find_input(section)
    form = open_input(found.format)
    header = form.read_header(found.files)
    try:
        partitions = Partitions(form.cut(found.files, [*wants, *keep], section.partition_rows))
        if not partitions:
            raise InputError(
                f"input.url: {section.url} has no rows in {len(found.files)} file{'s' * (len(found.files) > 1)}, "
                f"{sum(file.size for file in found.files):,} bytes in all",
                hint="Point it to files that have some.",
            )
        columns = form.infer(found.files, partitions[0].segments, header, wants, keep)
    except MissingColumn as missing:
        raise _explain_missing(missing, section, wants) from missing
    for column in keep:
        if columns.kinds[column] == "binary":
            raise InputError(
                f"output.keep: column '{column}' holds bytes, which no output keeps",
                hint="Keep a column that names the row instead, such as an id or a path.",
            )
    return PartitionTable(
        format=found.format,
        files=found.files,
        partition_rows=section.partition_rows,
        rows=partitions[-1].first_row + partitions[-1].rows,
        partitions=partitions,
        columns=dict(columns.kinds),
        reads=tuple(column for column in wants if column not in columns.arrays),
        arrays=dict(columns.arrays),
        header=header,
    )


def _explain_missing(missing: MissingColumn, section: Input, wants: Mapping[str, Want]) -> InputError:
    key = "output.keep"
    if missing.column in wants:
        role = next((role for role, name in section.columns.items() if name == missing.column), missing.column)
        key = f"input.columns.{role}"
    close = difflib.get_close_matches(missing.column, missing.there, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return InputError(
        f"{key}: {missing.file} has no column '{missing.column}'; it has {', '.join(missing.there) or 'none'}",
        hint=f"{guess[:1].upper()}{guess[1:]}Set {key} in the recipe.",
    )
