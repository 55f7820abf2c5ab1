"""Reading outputs back: the parts of a job, and a sealed output by its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter

from daskinfer.errors import Incomparable, IntegrityError
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition, Reject
from daskinfer.spec.section import Section
from daskinfer.storage.columns.numpy import to_arrow
from daskinfer.storage.columns.types import decode_type
from daskinfer.storage.objects.filesystem import read_bytes, size_of
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url
from daskinfer.storage.outputs.arrays import VALID, read_arrays
from daskinfer.storage.outputs.commit_log import find_merged
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.places import MANIFEST
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart
from daskinfer.storage.outputs.tables import DECODERS, ROW, find_values

_LARGE = 256 << 20
_PIECE = 8 << 20


class SealedPart(Section):
    """A part as the manifest names it."""

    partition: int
    """Partition number."""
    path: str
    """Relative to the output; for Zarr a pattern over its arrays."""
    digest: str
    """xxh3-128 of the written part, hex."""
    rows_out: int
    """Rows with a result."""
    rows_quarantined: int
    """Rows refused."""
    snapshot: str
    """Snapshot that computed it."""


@dataclass(frozen=True, slots=True)
class SealedOutput:
    """An output that is whole."""

    url: str
    """Where it is."""
    layout: OutputLayout
    """What its parts have in common; `metadata` is what the job said of itself."""
    parts: tuple[SealedPart, ...]
    """All of them, in order."""
    retries: int = 0
    """Retries whose rows are in them."""

    def read(self, partition: int) -> OutputPart:
        """Read a part; where a retry has merged rows into it since the manifest was read, with these."""
        part = self.parts[partition]
        try:
            return read_part(self.url, self.layout, part.partition, part.path, part.digest)
        except IntegrityError:
            merged = find_merged(self.url, self.layout, partition, self.retries)
            if merged is None:
                raise
        try:
            return read_part(self.url, self.layout, partition, merged.path, merged.digest)
        except IntegrityError as error:
            hint = f"If a retry was interrupted while it merged rows, complete it: daskinfer retry {self.layout.job}"
            raise IntegrityError(error.message, hint=hint) from error


def open_output(url: str) -> SealedOutput:
    """Return a sealed output.

    Raises
    ------
    Incomparable
        It is not sealed, or its manifest does not say what its columns are.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = open_output(finish_job("work", "labels.zarr").output)
    >>> [field.name for field in output.layout.fields], output.read(1).arrays["score"]
    (['label', 'score'], array([1.], dtype=float32))
    """
    place = absolute_url(url)
    manifest = read_manifest(place)
    if manifest is None:
        raise Incomparable(
            f"{place} is not a finished output: it has no {MANIFEST}",
            hint="Check the path, or run its recipe to the end: daskinfer run RECIPE",
        )
    metadata = {key: value for key, value in manifest.items() if isinstance(value, str)}
    try:
        layout = OutputLayout(
            job=manifest["job"],
            fields=TypeAdapter(tuple[OutputField, ...]).validate_python(manifest["fields"]),
            keep=dict(manifest["keep"]),
            partition_rows=manifest["partition_rows"],
            rows=manifest["rows_in"],
            metadata=metadata,
        )
        parts = TypeAdapter(tuple[SealedPart, ...]).validate_python(manifest["parts"])
    except (KeyError, TypeError, ValueError) as error:
        raise Incomparable(
            f"{join_url(place, MANIFEST)} does not say what its columns are",
            hint="It is damaged or was written by another version of daskinfer; make the output again with --fresh.",
        ) from error
    return SealedOutput(place, layout, parts, len(manifest.get("retries", [])))


def read_part(url: str, layout: OutputLayout, partition: int, path: str, digest: str) -> OutputPart:
    """Read a committed part: what was given to `Sink.write`, its rejects included.

    Parameters
    ----------
    url
        The output.
    layout
        What its parts have in common.
    partition
        Partition number.
    path, digest
        As its commit record, or the manifest, has them.

    Returns
    -------
    OutputPart
        Without the segments of the partition. Of jsonl, kept columns are JSON texts; the task's NaN and infinities, which
        are null there, come back as NaN.

    Raises
    ------
    IntegrityError
        The part is gone, or has other bytes than were committed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = open_output(finish_job("work", "labels.jsonl").output)
    >>> read_part(output.url, output.layout, 0, output.parts[0].path, digest="00")
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: partition 0 of .../labels.jsonl is not what was committed: ...
    """
    rows = Partition(
        number=partition, first_row=partition * layout.partition_rows, rows=layout.rows_of(partition), segments=()
    )
    read = _read_zarr if path.startswith("*/") else _read_table
    try:
        return read(url, layout, rows, path, digest)
    except FileNotFoundError as error:
        raise _make_damage(url, partition, f"is gone: {error}") from error


def _read_zarr(url: str, layout: OutputLayout, rows: Partition, path: str, digest: str) -> OutputPart:
    try:
        chunks, found = read_arrays(url, layout, rows)
    except (KeyError, ValueError) as error:  # no such array, or a chunk that is too short
        raise _make_damage(url, rows.number, f"cannot be read: {error}") from error
    _verify(url, rows.number, found, digest)
    valid = chunks[VALID]
    positions = np.flatnonzero(valid).astype(np.int32)
    return OutputPart(
        partition=rows,
        positions=positions,
        arrays={field.name: chunks[field.name][valid] for field in layout.fields},
        kept=pa.table({name: to_arrow(chunks[name][valid], decode_type(own)) for name, own in layout.keep.items()}),
        rejects=_find_rejects(url, rows, positions),
    )


def _read_table(url: str, layout: OutputLayout, rows: Partition, path: str, digest: str) -> OutputPart:
    place = join_url(url, path)
    decode = DECODERS.get(PurePosixPath(path).suffix)
    if decode is None:
        raise _make_damage(url, rows.number, f"is named {path}, a format that no output has")
    if (
        is_local(place) and (size := size_of(place)) > _LARGE
    ):  # whoever put it there instead may have made it of any size
        whole = xxhash.xxh3_128()
        for begin in range(0, size, _PIECE):
            whole.update(read_bytes(place, begin, min(begin + _PIECE, size)))
        _verify(url, rows.number, whole.hexdigest(), digest)
    data = read_bytes(place)
    _verify(url, rows.number, xxhash.xxh3_128_hexdigest(data), digest)
    table = decode(data, layout)
    numbers: NDArray[np.int64] = table.column(ROW).to_numpy()
    positions = (numbers - rows.first_row).astype(np.int32)
    return OutputPart(
        partition=rows,
        positions=positions,
        arrays={field.name: find_values(table, field) for field in layout.fields},
        kept=table.select(list(layout.keep)).replace_schema_metadata(None),
        rejects=_find_rejects(url, rows, positions),
    )


def _find_rejects(url: str, rows: Partition, positions: NDArray[np.int32]) -> tuple[Reject, ...]:
    if len(positions) == rows.rows:
        return ()
    accepted = set((positions + rows.first_row).tolist())
    # A retry merges the part first and the quarantine after it.
    return tuple(reject for reject in read_rejects(url, rows.number) if reject.row not in accepted)


def _verify(url: str, partition: int, found: str, digest: str) -> None:
    if found != digest:
        raise _make_damage(url, partition, f"is not what was committed: its digest is {found}, not {digest}")


def _make_damage(url: str, partition: int, what: str) -> IntegrityError:
    return IntegrityError(
        f"partition {partition} of {url} {what}",
        hint="Files of the output were deleted or changed; make it again with --fresh.",
    )
