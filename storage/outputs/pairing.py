"""Two sealed outputs side by side: whether they are of the same rows and columns, and their rows in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from daskinfer.errors import Incomparable
from daskinfer.spec.job.record import OutputField
from daskinfer.storage.columns.format_limits import holds
from daskinfer.storage.columns.json_text import parse_json, to_json_texts
from daskinfer.storage.columns.types import JSON, encode_type
from daskinfer.storage.outputs.reading import SealedOutput
from daskinfer.storage.outputs.sink import OutputPart


def check_pair(current: SealedOutput, candidate: SealedOutput) -> None:
    """Make sure that two outputs are of the same input and have the same columns.

    The input is the same where its files are, by the digest that the manifests have of them; or where both outputs
    keep a column of it, by which `pair_parts` then makes sure row by row.

    Raises
    ------
    Incomparable
        They are not.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> three, four = (open_output(finish_job("work", f"{rows}.jsonl", rows=rows).output) for rows in (3, 4))
    >>> check_pair(three, three)
    >>> check_pair(three, four)
    Traceback (most recent call last):
        ...
    daskinfer.errors.Incomparable: ...3.jsonl and ...4.jsonl are not of the same rows: ...
    """
    mine, theirs = current.layout, candidate.layout
    between = f"{current.url} and {candidate.url}"
    if mine.rows != theirs.rows:
        raise Incomparable(
            f"{between} are not of the same rows: they have {mine.rows:,} and {theirs.rows:,}",
            hint="Run both recipes on the same input.",
        )
    wrong = sorted({field.name for field in set(mine.fields) ^ set(theirs.fields)})
    if wrong:
        named = [
            f"{name} ({' and '.join(_describe(layout.fields, name) for layout in (mine, theirs))})" for name in wrong
        ]
        raise Incomparable(
            f"{between} do not have the same columns: {', '.join(named)}",
            hint="Run both recipes with the same task and options.",
        )
    if mine.metadata.get("inputs") != theirs.metadata.get("inputs") and not _shared(current, candidate):
        raise Incomparable(
            f"{between} are not of the same input files, and keep no column by which their rows could be told",
            hint="Run both recipes on the same input, or keep a column that names the row: output.keep: [id]",
        )


def pair_parts(current: SealedOutput, candidate: SealedOutput) -> Iterator[tuple[OutputPart, OutputPart]]:
    """Return two outputs' results for the same rows, a range of rows at a time, whatever their partitions are.

    Raises
    ------
    Incomparable
        A column of the input that both keep differs in a row.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> one, other = (open_output(finish_job("work", name).output) for name in ("a.zarr", "b.jsonl"))
    >>> [(before.rows, after.rows) for before, after in pair_parts(one, other)]
    [(array([0, 1]), array([0, 1])), (array([2]), array([2]))]
    """
    sizes = [output.layout.partition_rows for output in (current, candidate)]
    names = _shared(current, candidate)
    for pair in zip(_walk(current, sizes[1]), _walk(candidate, sizes[0]), strict=True):
        for name in names:
            row = _find_difference(*pair, name)
            if row is not None:
                raise Incomparable(
                    f"{current.url} and {candidate.url} are not of the same rows: column '{name}' of the input differs in "
                    f"row {row:,}",
                    hint="Run both recipes on the same input.",
                )
        yield pair


def _walk(output: SealedOutput, size: int) -> Iterator[OutputPart]:
    """Return all parts of an output, each cut where partitions of `size` rows end, too."""
    for number in range(output.layout.partitions):
        part = output.read(number)
        first, end = part.partition.first_row, part.partition.first_row + part.partition.rows
        while first < end:
            last = min(end, (first // size + 1) * size)
            yield _take(part, first, last)
            first = last


def _find_difference(one: OutputPart, other: OutputPart, name: str) -> int | None:
    """Return the first row that both have and in which a kept column differs."""
    rows, left, right = np.intersect1d(one.rows, other.rows, assume_unique=True, return_indices=True)
    mine, theirs = (part.kept.column(name).take(chosen) for part, chosen in ((one, left), (other, right)))
    if mine.type == theirs.type:
        if mine.equals(theirs):
            return None
        pairs = zip(mine, theirs, strict=True)
        different = [index for index, (before, after) in enumerate(pairs) if not before.equals(after)]
        rows, mine, theirs = rows[different], mine.take(different), theirs.take(different)
        if not holds("jsonl", mine.type):  # bytes, which have no text
            return int(rows[0]) if len(rows) else None
    for row, before, after in zip(rows.tolist(), to_json_texts(mine), to_json_texts(theirs), strict=True):
        if before != after and not _is_same(before, after):
            return int(row)
    return None


def _is_same(before: str, after: str) -> bool:
    """Whether two JSON texts say the same; where one format writes null, another has NaN."""
    if {before, after} <= {"null", "NaN"}:
        return True
    try:
        one, other = (parse_json(text) for text in (before, after))
    except ValueError:
        return False
    return bool(one == other)


def _shared(current: SealedOutput, candidate: SealedOutput) -> list[str]:
    """Return the input columns that both outputs keep in the same type, or as JSON."""
    keep = candidate.layout.keep
    as_json = encode_type(JSON)
    return [
        name
        for name, own in current.layout.keep.items()
        if name in keep and (own == keep[name] or as_json in (own, keep[name]))
    ]


def _describe(fields: tuple[OutputField, ...], name: str) -> str:
    field = next((field for field in fields if field.name == name), None)
    return "missing" if field is None else f"{field.kind}{list(field.shape) or ''}"


def _take(part: OutputPart, first: int, last: int) -> OutputPart:
    """Return the rows of a part from `first` up to `last`."""
    begin, end = np.searchsorted(part.rows, [first, last]).tolist()
    return OutputPart(
        partition=replace(part.partition, first_row=first, rows=last - first),
        positions=part.positions[begin:end] - np.int32(first - part.partition.first_row),
        arrays={name: values[begin:end] for name, values in part.arrays.items()},
        kept=part.kept.slice(begin, end - begin),
        rejects=tuple(reject for reject in part.rejects if first <= reject.row < last),
    )
