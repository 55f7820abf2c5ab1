"""In which encoding text files are: by their marks, else as the recipe says, else UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from daskinfer.errors import InputError
from daskinfer.spec.recipe.dialect import AUTO
from daskinfer.spec.rows import InputFile
from daskinfer.storage.inputs.compression import COMPRESSED_MARKS, open_decompressed
from daskinfer.storage.inputs.files import map_files

# The longer ones first: UTF-16's is the beginning of UTF-32's.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_ORDERS = {b"\xff\xfe": "-le", b"\xfe\xff": "-be", b"\xff\xfe\x00\x00": "-le", b"\x00\x00\xfe\xff": "-be"}
_HEAD = 64 << 10


def tell_encodings(files: Sequence[InputFile], declared: str) -> tuple[InputFile, ...]:
    """Return the files with their encodings, after a look at the beginning of each.

    Parameters
    ----------
    files
        Files of text.
    declared
        What the recipe says: `auto` or an encoding.

    Raises
    ------
    InputError
        A file is in no encoding that could be told, or in another than the recipe says.

    Examples
    --------
    >>> from pathlib import Path
    >>> size = Path("a.txt").write_bytes("grüße".encode("utf-16"))
    >>> tell_encodings([InputFile("a.txt", size, etag="")], "auto")[0].encoding
    'utf-16'
    """
    heads = map_files(lambda filesystem, file: _read_head(file), files)
    return tuple(
        replace(file, encoding=_tell_encoding(file, head, declared)) for file, head in zip(files, heads, strict=True)
    )


def _read_head(file: InputFile) -> bytes:
    with open_decompressed(file) as stream:
        return stream.read(_HEAD)


def _tell_encoding(file: InputFile, head: bytes, declared: str) -> str:
    """Return an encoding for Python, "" for UTF-8."""
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    marked = _MARKS.get(mark)
    if marked is None:
        if declared in ("utf-16", "utf-32"):
            raise InputError(
                f"{file.url} does not begin with the mark that tells the order of bytes in {declared}",
                hint=f"Set input.encoding to {declared}-le or {declared}-be.",
            )
        if declared == AUTO:
            _refuse_binary(file, head)
        return "" if declared in (AUTO, "utf-8") else declared
    if declared not in (AUTO, marked, f"{marked}{_ORDERS.get(mark, '')}"):
        raise InputError(
            f"{file.url} begins with the mark of {marked}{_ORDERS.get(mark, '')}, but input.encoding is {declared}",
            hint="Leave out input.encoding, or narrow input.url to files in one encoding.",
        )
    return "" if marked == "utf-8" else marked


def _refuse_binary(file: InputFile, head: bytes) -> None:
    for mark, name in COMPRESSED_MARKS.items():
        if head.startswith(mark):
            raise InputError(
                f"{file.url} is compressed by {name}, and its name does not say so",
                hint="Name it by its compression, such as texts.jsonl.gz.",
            )
    if b"\0" in head:
        even, odd = (head[first::2].count(0) for first in (0, 1))
        guess = "utf-16-le" if odd > even else "utf-16-be"
        if 2 * head.count(0) > len(head):  # three of four bytes, where texts are in Latin letters
            guess = "utf-32-be" if head[:1] == b"\0" else "utf-32-le"
        raise InputError(
            f"{file.url} holds NUL bytes and no byte order mark, so it is not text in UTF-8",
            hint=f"If it is text, declare its encoding, such as input.encoding: {guess}; with utf-8 only the rows with "
            "NUL bytes are quarantined.",
        )
