"""Rows of image files: every file is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
from fsspec import AbstractFileSystem

from daskinfer.errors import InputError
from daskinfer.spec.rows import InputFile, Partition, Segment
from daskinfer.storage.inputs.cutting import cut_evenly
from daskinfer.storage.inputs.files import map_files, path_of
from daskinfer.storage.inputs.seam import Columns, Harvest, Layout, MissingColumn, Request
from daskinfer.storage.store_errors import explain_errors

_TYPES = {"image": pa.large_binary(), "path": pa.string()}
_WANTED = {"image": "image", "path": "text"}


class ImageFormat:
    """Encoded images: column `image` holds a file's bytes, `path` its URL. A segment is a run of files."""

    def read_header(self, files: Sequence[InputFile]) -> tuple[str, ...]:
        """Return nothing: the columns are always the same."""
        return ()

    def cut(self, files: Sequence[InputFile], columns: Sequence[str], partition_rows: int) -> Iterator[Partition]:
        """Cut the files, in their order."""

        def make_segment(first: int, last: int) -> Segment:
            more = tuple(range(first + 1, last))
            return Segment(file=first, begin=first, end=last, rows=last - first, line=0, more=more)

        return cut_evenly(len(files), partition_rows, make_segment)

    def infer(
        self, files: Sequence[InputFile], partitions: Sequence[Partition], header: tuple[str, ...], request: Request
    ) -> Columns:
        """Return the types of the columns, of which there are two."""
        for column in request.columns:
            if column not in _TYPES:
                raise MissingColumn(column, files[0].url, list(_TYPES))
        for column, want in request.wants.items():
            if want != _WANTED[column]:
                raise InputError(
                    f"column '{column}' of image files cannot be read as {want}",
                    hint="Image files have an image and its path; arrays and texts come from other formats.",
                )
        return Columns({column: _TYPES[column] for column in [*request.wants, *request.keep]})

    def read(self, files: Sequence[InputFile], segment: Segment, layout: Layout) -> Harvest:
        """Read the files of a segment; an empty one is refused."""
        contents = map_files(_read_whole, files)
        offsets = [offset for offset, content in enumerate(contents) if content]
        columns = {
            "image": pa.array([contents[offset] for offset in offsets], _TYPES["image"]),
            "path": [files[offset].url for offset in offsets],
        }
        return Harvest(
            offsets=offsets,
            lines=[1] * len(offsets),
            columns={column: columns[column] for column in layout.types},
            refused=[
                (offset, 1, "the file is empty", PurePosixPath(files[offset].url).name)
                for offset, content in enumerate(contents)
                if not content
            ],
            sources=[file.url for file in files],
        )


def _read_whole(filesystem: AbstractFileSystem, file: InputFile) -> bytes:
    with explain_errors(file.url, "read"):
        return bytes(filesystem.cat_file(path_of(filesystem, file)))
