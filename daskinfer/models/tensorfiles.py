"""safetensors files by their bytes: headers read and checked, blobs written, nothing decoded.

Working on bytes keeps every dtype exact and torch out of publishing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from daskinfer.errors import CheckpointError

# Bytes of one element, by safetensors' name of the type.
ITEM_SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LARGEST_HEADER = 100_000_000
_DAMAGED = "The file is damaged or was not fully downloaded; fetch it again."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file."""

    file: Path
    """The safetensors file."""
    name: str
    """Name inside the file."""
    dtype: str
    """safetensors dtype: F32, BF16 ..."""
    shape: tuple[int, ...]
    """Dimensions."""
    begin: int
    """First byte in the file."""
    end: int
    """One past the last byte."""


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises
    ------
    CheckpointError
        If the file is truncated or its header does not describe its bytes.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{file}: not a whole safetensors file ({size} bytes)", hint=_DAMAGED)
        text = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        tensors = {
            name: StoredTensor(
                file,
                name,
                str(entry["dtype"]),
                tuple(int(number) for number in entry["shape"]),
                8 + length + int(entry["data_offsets"][0]),
                8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file}: its safetensors header cannot be read ({error})", hint=_DAMAGED) from error
    _check_layout(file, size, 8 + length, tensors)
    return tensors


def serialize(tensors: Sequence[tuple[str, StoredTensor]]) -> bytes:
    """Return a safetensors file of the given (new name, tensor) pairs; equal input gives equal bytes."""
    # Wide types first keeps every tensor aligned to its own type, as safetensors itself does.
    ordered = sorted(tensors, key=lambda pair: (-ITEM_SIZES[pair[1].dtype], pair[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.end - tensor.begin
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    chunks = [struct.pack("<Q", len(text)), text]
    for _, tensor in ordered:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.begin)
            chunks.append(stream.read(tensor.end - tensor.begin))
        if len(chunks[-1]) != tensor.end - tensor.begin:
            raise CheckpointError(f"{tensor.file}: ends inside the tensor {tensor.name}", hint=_DAMAGED)
    return b"".join(chunks)


def _check_layout(file: Path, size: int, begin: int, tensors: dict[str, StoredTensor]) -> None:
    position = begin
    for tensor in sorted(tensors.values(), key=lambda item: (item.begin, item.end)):
        item = ITEM_SIZES.get(tensor.dtype)
        if item is None:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} is stored as {tensor.dtype}, which is not supported",
                hint="Publish a checkpoint in float32, bfloat16 or float16.",
            )
        if tensor.begin != position or tensor.end - tensor.begin != prod(tensor.shape) * item:
            raise CheckpointError(f"{file}: the bytes of tensor {tensor.name} do not match its header", hint=_DAMAGED)
        position = tensor.end
    if position != size:
        raise CheckpointError(
            f"{file}: {size} bytes, but its header describes {position}: the file is truncated or has bytes added",
            hint=_DAMAGED,
        )
