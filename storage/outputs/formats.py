"""Chooses the format of an output and opens its sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from daskinfer.errors import RecipeError
from daskinfer.spec.job.record import OutputField
from daskinfer.storage.columns.format_limits import TABLE_FORMATS, advise, holds
from daskinfer.storage.columns.types import decode_type, describe_type
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.arrays import VALID, ZarrSink
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.places import MANIFEST
from daskinfer.storage.outputs.sink import OutputLayout, Sink
from daskinfer.storage.outputs.tables import ROW, TableSink

_SUFFIXES = {".zarr": "zarr", **{f".{name}": name for name in TABLE_FORMATS}}


def choose_output_format(url: str, wanted: str = "auto") -> str:
    """Return zarr, parquet or jsonl: what the recipe says, else what the URL's suffix says.

    Examples
    --------
    >>> choose_output_format("s3://bucket/labels.zarr/"), choose_output_format("labels", "jsonl")
    ('zarr', 'jsonl')
    >>> choose_output_format("labels")
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: output.format: auto cannot tell the format from the suffix '' of labels
    End output.url with .zarr, .parquet or .jsonl, or set output.format.
    """
    if wanted != "auto":
        return wanted
    suffix = PurePosixPath(url.rstrip("/")).suffix.lower()
    if suffix not in _SUFFIXES:
        raise RecipeError(
            f"output.format: auto cannot tell the format from the suffix '{suffix}' of {url}",
            hint="End output.url with .zarr, .parquet or .jsonl, or set output.format.",
        )
    return _SUFFIXES[suffix]


def open_sink(
    url: str,
    format: str,
    job: str,
    fields: Sequence[OutputField],
    keep: Mapping[str, str],
    partition_rows: int,
    rows: int,
    metadata: Mapping[str, str],
) -> Sink:
    """Return the sink of an output; nothing is written yet, and it can be sent to workers.

    Parameters
    ----------
    url
        The output folder.
    format
        zarr, parquet, jsonl or auto.
    job
        Job id.
    fields
        Columns that the task writes.
    keep
        Kept input column -> type.
    partition_rows, rows
        Size of a partition and of the input.
    metadata
        Provenance to store with the data.

    Raises
    ------
    RecipeError
        Where the format cannot be told, or a kept column has a name or a type that the output cannot have.

    Examples
    --------
    >>> fields = [OutputField(name="label", kind="string")]
    >>> open_sink("labels.jsonl", "auto", "demo", fields, {}, partition_rows=2, rows=3, metadata={}).objects(1)
    ['part-00000001.jsonl']
    """
    name = choose_output_format(url, format)
    return make_sink(url, name, OutputLayout(job, tuple(fields), dict(keep), partition_rows, rows, dict(metadata)))


def make_sink(
    url: str, name: str, layout: OutputLayout, fence: Fence | None = None, records: CommitLog | None = None
) -> Sink:
    """Return the sink of a layout; `name` is zarr, parquet or jsonl. See `open_sink`, and for the rest `ZarrSink`.

    Examples
    --------
    >>> layout = OutputLayout("demo", (OutputField(name="label", kind="string"),), {"label": "string"}, 2, 3, {})
    >>> make_sink("labels.jsonl", "jsonl", layout)
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: output.keep: the name 'label' cannot be used: ...
    """
    taken = {field.name for field in layout.fields} | {VALID if name == "zarr" else ROW}
    for column, own in layout.keep.items():
        _check_name(column, name, taken)
        _check_type(column, name, own)
    place = absolute_url(url)
    if name == "zarr":
        return ZarrSink(place, layout, fence, records)
    return TableSink(place, layout, name, fence, records)


def _check_name(column: str, name: str, taken: set[str]) -> None:
    unusable = name == "zarr" and (
        "/" in column
        or column.startswith("__")
        or column in ("", ".", "..", "zarr.json", "_daskinfer", "_quarantine", MANIFEST)
        # What file systems allow a folder.
        or len(column.encode(errors="replace")) > 255
    )
    if column in taken or unusable:
        reason = "the output writes a column of that name itself" if column in taken else "no Zarr array may have it"
        raise RecipeError(
            f"output.keep: the name '{column}' cannot be used: {reason}",
            hint="Rename the column in the input, or leave it out of output.keep.",
        )


def _check_type(column: str, name: str, text: str) -> None:
    try:
        own = decode_type(text)
    except ValueError as error:
        raise RecipeError(f"output.keep: column '{column}': {error}", hint="Start over with --fresh.") from error
    if not holds(name, own):
        raise RecipeError(
            f"output.keep: column '{column}' holds {describe_type(own)}, which a {name} output cannot hold",
            hint=advise(name),
        )
