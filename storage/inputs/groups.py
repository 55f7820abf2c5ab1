"""Rows of Zarr groups and arrays: row i is the i-th element of every array along its first axis."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from daskinfer.errors import InputError
from daskinfer.spec.rows import ArrayColumn, InputFile, Partition, Segment
from daskinfer.storage.columns.numpy import to_arrow, type_of
from daskinfer.storage.columns.types import describe_type, is_text
from daskinfer.storage.columns.values import can_convert, convert_column, convert_text
from daskinfer.storage.inputs.cutting import cut_evenly
from daskinfer.storage.inputs.files import ZARR_METADATA
from daskinfer.storage.inputs.interface import Columns, Layout, MissingColumn, ParsedRows, Request
from daskinfer.storage.inputs.kinds import check_picture
from daskinfer.storage.inputs.zarr_bounds import ChunkBounds, refuse_absurd, refuse_large_partition
from daskinfer.storage.objects.plain_store import open_store
from daskinfer.storage.objects.store_errors import NotOurs, explain_errors

SINGLE = "array"
"""Column of an array that is in no group, unless the recipe reads it under another name."""


class ZarrFormat:
    """A group with a column an array, or a single array. A segment's files are the objects that its rows lie in."""

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return nothing: the metadata knows."""
        return ()

    def cut(self, files: Sequence[InputFile], columns: Sequence[str], partition_rows: int) -> Iterator[Partition]:
        """Cut the arrays, which must be equally long."""
        root, index = _root_of(files)
        arrays = _open_arrays(root, columns)
        for column, array in arrays.items():
            refuse_large_partition(array, partition_rows, f"array '{column}' of {root}")
        lengths = {column: array.shape[0] for column, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"'{column}' has {length:,}" for column, length in lengths.items())
            raise InputError(
                f"{root}: the arrays that are read or kept differ in length: {listed} rows",
                hint="Row i of all of them must belong together; name others under input.columns or output.keep.",
            )
        numbers = {file.url: number for number, file in enumerate(files)}

        def make_segment(first: int, last: int) -> Segment:
            urls = dict.fromkeys(url for array in arrays.values() for url in _objects_of(root, array, first, last))
            more = tuple(numbers[url] for url in urls if numbers.get(url, index) != index)
            return Segment(file=index, begin=first, end=last, rows=last - first, line=0, more=more)

        return cut_evenly(next(iter(lengths.values()), 0), partition_rows, make_segment)

    def infer(
        self, files: Sequence[InputFile], partitions: Sequence[Partition], header: tuple[str, ...], request: Request
    ) -> Columns:
        """Return what the columns hold, from the metadata."""
        root, _ = _root_of(files)
        types: dict[str, pa.DataType] = {}
        arrays: dict[str, ArrayColumn] = {}
        for column, array in _open_arrays(root, request.columns).items():
            where, want = f"array '{column}' of {root}", request.wants.get(column)
            own = type_of(array.dtype, array.shape[1:])
            if want == "text" and not (own is not None and is_text(own)):
                raise InputError(
                    f"{where} holds {_describe(array)}, not one string a row",
                    hint="Name another array under input.columns, or write it as strings.",
                )
            if want in ("array", "image"):
                arrays[column] = _array_column(array, where)
            if want == "image":
                check_picture(arrays[column], where)
            if want == "text" or column in request.keep:
                if own is None:
                    raise InputError(
                        f"output.keep: {where} holds {_describe(array)}, which cannot be kept",
                        hint="Strings, booleans, numbers, times in s, ms, us, ns or D, and arrays of numbers can.",
                    )
                types[column] = request.declared.get(column, own)
                if not can_convert(own, types[column]):
                    raise InputError(
                        f"input.types.{column}: {where} holds {_describe(array)}, which cannot be read as "
                        f"{describe_type(types[column])}",
                        hint="Leave it out of input.types, where its own type is kept, or name another type.",
                    )
        return Columns(types, arrays)

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> ParsedRows:
        """Read the rows of a segment."""
        root = files[0].url.rpartition("/")[0]
        found: dict[str, NDArray[Any]] = {}
        for column, array in _open_arrays(root, [*layout.types, *layout.arrays]).items():
            with explain_errors(root, "read"):
                try:
                    found[column] = np.asarray(array[segment.begin : segment.end])
                except (ValueError, RuntimeError) as error:
                    raise InputError(
                        f"array '{column}' of {root}: rows {segment.begin:,} to {segment.end:,} cannot be decoded: {error}",
                        hint="Write their chunks again.",
                    ) from error
        errors: dict[int, str] = {}
        columns = {
            column: _read_column(found[column], column, target, column in layout.reads, errors)
            for column, target in layout.types.items()
        }
        offsets = np.setdiff1d(np.arange(segment.rows), list(errors))
        return ParsedRows(
            offsets=offsets.tolist(),
            lines=(offsets + (segment.begin + 1)).tolist(),
            columns={column: values.take(pa.array(offsets)) for column, values in columns.items()},
            arrays={column: found[column][offsets] if errors else found[column] for column in layout.arrays},
            refused=[(offset, segment.begin + offset + 1, errors[offset], "") for offset in sorted(errors)],
            sources=[root] * segment.rows,
        )


def _root_of(files: Sequence[InputFile]) -> tuple[str, int]:
    """Return URL and first metadata object of the group or array that all files are in."""
    metadata = [number for number, file in enumerate(files) if file.url.rpartition("/")[2] in ZARR_METADATA]
    number = min(metadata, key=lambda number: files[number].url.count("/"))
    return files[number].url.rpartition("/")[0], number


def _open_arrays(root: str, columns: Sequence[str]) -> dict[str, zarr.Array[Any]]:
    with explain_errors(root, "open"):
        found: dict[str, zarr.Array[Any]] = {}
        try:
            node = zarr.open(open_store(root, ChunkBounds(root, found)), mode="r")
        except NotOurs as error:
            raise InputError(f"{root}: {error.message}", hint=error.hint) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{root} cannot be read as zarr: {error}", hint="Check the metadata in it.") from error
        for column in dict.fromkeys(columns):
            array = _pick(node, column, columns, root)
            if not isinstance(array, zarr.Array):
                raise MissingColumn(column, root, _names_in(node))
            if not array.shape:
                raise InputError(
                    f"array '{column}' of {root} is a single value and has no rows",
                    hint="Rows are the elements along the first axis.",
                )
            refuse_absurd(array, f"array '{column}' of {root}")
            found[column] = array
    return found


def _pick(node: zarr.Array[Any] | zarr.Group, column: str, columns: Sequence[str], root: str) -> object:
    if isinstance(node, zarr.Array):
        return node if column == SINGLE or set(columns) == {column} else None
    try:
        return node.get(column)
    except NotOurs as error:
        raise InputError(f"{root}: {error.message}", hint=error.hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"array '{column}' of {root} cannot be read as zarr: {error}", hint="Check its metadata, or leave it out."
        ) from error


def _names_in(node: zarr.Array[Any] | zarr.Group) -> list[str]:
    if isinstance(node, zarr.Array):
        return [SINGLE]
    with warnings.catch_warnings():
        # An output of daskinfer holds records beside its arrays.
        warnings.filterwarnings("ignore", "Object at .* is not recognized as a component of a Zarr hierarchy")
        return sorted(node.array_keys())


def _objects_of(root: str, array: zarr.Array[Any], first: int, last: int) -> Iterator[str]:
    """Return the URLs of the metadata and of the chunks that some rows lie in."""
    place = f"{root}/{array.path}".rstrip("/")
    yield from (f"{place}/{name}" for name in ZARR_METADATA)
    chunk, *others = array.shards or array.chunks
    grid = [range(math.ceil(size / length)) for size, length in zip(array.shape[1:], others, strict=True)]
    for coordinates in product(range(first // chunk, math.ceil(last / chunk)), *grid):
        yield f"{place}/{array.metadata.encode_chunk_key(coordinates)}"


def _array_column(array: zarr.Array[Any], where: str) -> ArrayColumn:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {array.dtype}, not numbers", hint="Name another array under input.columns.")
    return ArrayColumn(dtype=array.dtype.name, shape=array.shape[1:])


def _read_column(
    values: NDArray[Any], column: str, target: pa.DataType, is_read: bool, errors: dict[int, str]
) -> pa.Array:
    if values.dtype.kind not in "UTO":
        own = type_of(values.dtype, values.shape[1:])
        return convert_column(to_arrow(values, own), target, column, errors)
    texts: list[str | None] = []
    for offset, value in enumerate(values.tolist()):
        try:
            # An array of objects may hold None; only what is read must be there.
            texts.append(None if value is None and not is_read else convert_text(value))
        except ValueError as error:
            errors.setdefault(offset, f"column '{column}': {error}")
            texts.append(None)
    return convert_column(pa.array(texts, pa.string()), target, column, errors)


def _describe(array: zarr.Array[Any]) -> str:
    return f"{array.dtype} of shape {array.shape[1:]} a row"
