"""The partition table: the whole input, listed, counted and cut once at the start of a job."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast
from unicodedata import normalize

import pyarrow as pa

from daskinfer.errors import InputError, RecipeError
from daskinfer.spec.recipe.dialect import AUTO, Csv
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import Partitions, PartitionTable, Want
from daskinfer.storage.columns.format_limits import advise, holds
from daskinfer.storage.columns.types import describe_type, encode_type, is_text, parse_declared
from daskinfer.storage.inputs.columnar import ParquetFormat
from daskinfer.storage.inputs.files import LINE_FORMATS, FoundInput, find_input
from daskinfer.storage.inputs.groups import ZarrFormat
from daskinfer.storage.inputs.images import ImageFormat
from daskinfer.storage.inputs.interface import Columns, InputFormat, MissingColumn, Request
from daskinfer.storage.inputs.text.encodings import tell_encodings
from daskinfer.storage.inputs.text.lines import LineFormat, LineFormatName

_BINARY: dict[str, InputFormat] = {"parquet": ParquetFormat(), "images": ImageFormat(), "zarr": ZarrFormat()}


def open_input(name: str, csv: Csv | None = None) -> InputFormat:
    """Return the input format of a name: jsonl, csv, text, parquet, images or zarr.

    Parameters
    ----------
    name
        Its name.
    csv
        How csv is written.

    Examples
    --------
    >>> type(open_input("parquet")).__name__, type(open_input("csv")).__name__
    ('ParquetFormat', 'LineFormat')
    """
    return _BINARY.get(name) or LineFormat(cast(LineFormatName, name), csv)


def index_input(
    section: Input, wants: Mapping[str, Want], keep: Sequence[str] = (), output: str = "parquet"
) -> PartitionTable:
    r"""List the files of an input, count their rows and cut them into partitions.

    Files of lines are read once, in flat memory; jsonl a second time where columns of it are kept in another format,
    because their types come from all rows. Of parquet only the footers are read, of Zarr the metadata, of images nothing.

    Parameters
    ----------
    section
        The recipe's `input`; its url is taken as it is, so make a relative one absolute first.
    wants
        Column -> what the task reads it as.
    keep
        Columns that the output copies.
    output
        Format of the output: jsonl, parquet or zarr.

    Raises
    ------
    RecipeError
        Where `input.types` names what is no type.
    InputError
        Where the output cannot hold a column, nothing matches, there are no rows, a column is missing or not what is wanted, or a file cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("a.jsonl").write_text('{"text": "a", "id": 1}\n' * 10)
    >>> table = index_input(Input(url="a.jsonl", partition_rows=4), {"text": "text"}, keep=["id"])
    >>> table.rows, [found.rows for found in table.partitions], table.columns
    (10, [4, 4, 2], {'text': 'string', 'id': 'int64'})
    >>> index_input(Input(url="a.jsonl"), {"Text": "text"})
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: input.columns.Text: ...a.jsonl has no column 'Text'; it has text, id
    Did you mean 'text'? Set input.columns.Text in the recipe.
    """
    request = Request(wants, tuple(keep), _declare(section, wants), output)
    found = _tell(section, find_input(section))
    form = open_input(found.format, section.csv)
    header = form.read_header(found.files)
    try:
        partitions = Partitions(form.cut(found.files, [*wants, *keep], section.partition_rows))
        if not partitions:
            raise InputError(
                f"input.url: {', '.join(section.urls)} has no rows in {len(found.files)} file{'s' * (len(found.files) > 1)}, "
                f"{sum(file.size for file in found.files):,} bytes in all",
                hint="Point input.url to files that have rows.",
            )
        columns = form.infer(found.files, partitions, header, request)
    except MissingColumn as missing:
        raise _explain_missing(missing, section, request) from missing
    for column in keep:
        _check_output(column, columns, output)
    return PartitionTable(
        format=found.format,
        files=found.files,
        partition_rows=section.partition_rows,
        rows=partitions[-1].first_row + partitions[-1].rows,
        partitions=partitions,
        columns={column: encode_type(own) for column, own in columns.types.items()},
        reads=tuple(column for column in wants if column not in columns.arrays),
        arrays=dict(columns.arrays),
        header=header,
        csv=section.csv,
        output=output,
    )


def _tell(section: Input, found: FoundInput) -> FoundInput:
    """Return the files with their encodings; refuse options that mean nothing to their format."""
    for key, is_given, formats in (
        ("encoding", section.encoding != AUTO, LINE_FORMATS),
        ("csv", section.csv != Csv(), {"csv"}),
    ):
        if is_given and found.format not in formats:
            raise RecipeError(
                f"input.{key} does not apply: {section.urls[0]} is {found.format}",
                hint=f"Leave it out, or set input.format to {' or '.join(sorted(formats))}.",
            )
    if found.format not in LINE_FORMATS:
        return found
    return replace(found, files=tell_encodings(found.files, section.encoding))


def _declare(section: Input, wants: Mapping[str, Want]) -> dict[str, pa.DataType]:
    declared: dict[str, pa.DataType] = {}
    for column, name in section.types.items():
        try:
            declared[column] = parse_declared(name)
        except ValueError as error:
            raise RecipeError(
                f"input.types.{column}: {error}", hint=f"Such as {column}: string, or {column}: int64."
            ) from error
        if column in wants and not (wants[column] == "text" and is_text(declared[column])):
            raise RecipeError(
                f"input.types.{column}: the task reads this column as {wants[column]}, not as {name}",
                hint="Leave it out of input.types: types are for columns that are only kept.",
            )
    return declared


def _check_output(column: str, columns: Columns, output: str) -> None:
    own = columns.types[column]
    if not holds(output, own):
        raise InputError(
            f"output.keep: column '{column}' holds {describe_type(own)}, which a {output} output cannot hold",
            hint=advise(output),
        )
    if output == "zarr" and (nulls := columns.nulls.get(column)):
        raise InputError(
            f"output.keep: column '{column}' has {nulls:,} null{'s' * (nulls > 1)}, which a zarr output cannot hold",
            hint=advise(output),
        )


def _explain_missing(missing: MissingColumn, section: Input, request: Request) -> InputError:
    key = "output.keep"
    if missing.column in request.wants:
        role = next((role for role, name in section.columns.items() if name == missing.column), missing.column)
        key = f"input.columns.{role}"
    elif missing.column not in request.keep:
        key = "input.types"
    same = [name for name in missing.there if name.casefold() == missing.column.casefold()]
    other = [name for name in missing.there if normalize("NFC", name) == normalize("NFC", missing.column)]
    if other:
        return InputError(
            f"{key}: {missing.file} has no column '{missing.column}' ({missing.column!a}); it has one that looks the "
            f"same, in another Unicode form: {other[0]!a}",
            hint=f"Write the name in the recipe as {json.dumps(other[0])}",
        )
    close = same or difflib.get_close_matches(missing.column, missing.there, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return InputError(
        f"{key}: {missing.file} has no column '{missing.column}'; it has {', '.join(missing.there) or 'none'}",
        hint=_guess_delimiter(missing) or f"{guess[:1].upper()}{guess[1:]}Set {key} in the recipe.",
    )


def _guess_delimiter(missing: MissingColumn) -> str:
    """Return a hint where a header seems not to have been cut."""
    for delimiter in ",;\t|:":
        names = [name.strip(" '\"") for name in missing.there[0].split(delimiter)] if len(missing.there) == 1 else []
        if missing.column in names:
            return f"Its fields seem to be delimited by {delimiter!r}: set input.csv.delimiter."
    return ""
