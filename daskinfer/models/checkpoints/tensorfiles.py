"""safetensors files by their bytes: headers read and checked, blobs written, nothing decoded.

Working on bytes keeps every dtype exact and torch out of what needs no conversion.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

from blake3 import blake3

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.ids import parse_json, refuse_dense
from daskinfer.models.folder import Folder
from daskinfer.units import format_amount

# Bytes of one element, by safetensors' name of the type.
ITEM_SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DAMAGED = "The file is damaged or was not fully downloaded; fetch it again."
_INDEX = ".safetensors.index.json"
_OTHER_FORMATS = ("tf", "flax", "jax")
# Of a hundred thousand tensors each is 12 MB.
_LARGEST_HEADER = 24_000_000
_MOST_TENSORS = 150_000
_MOST_AXES = 64  # as PyTorch
_PIECE_BYTES = 32 * 2**20  # a multiple of every item's size


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file."""

    folder: Folder
    """Where the file is."""
    file: str
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
    blake3: str | None = None
    """64 hex digits that its bytes must have, where they are known."""

    def pieces(self) -> Iterator[bytes]:
        """Return its bytes, a piece at a time.

        Raises
        ------
        CheckpointError
            Where the file ends too early.
        CorruptBlob
            Where the bytes are not those of the digest.
        """
        digest = blake3()
        for begin in range(self.begin, self.end, _PIECE_BYTES):
            end = min(begin + _PIECE_BYTES, self.end)
            try:
                piece = self.folder.read(self.file, begin, end)
            except FileNotFoundError as error:
                raise CheckpointError(f"{self.where}: the file is gone", hint="Restore it, and try again.") from error
            if len(piece) != end - begin:
                raise CheckpointError(f"{self.where}: the file ends inside the tensor", hint=DAMAGED)
            if self.blake3 is not None:
                digest.update(piece)
            yield piece
        if self.blake3 is not None and digest.hexdigest() != self.blake3:
            raise CorruptBlob(
                f"{self.where}: its bytes are not those that were published",
                hint="Restore the file from a copy, or publish the checkpoint again.",
            )

    @property
    def where(self) -> str:
        """File and name, for messages."""
        return f"{self.folder.url}/{self.file}: {self.name}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor on its way into a blob."""

    dtype: str
    """safetensors dtype."""
    shape: tuple[int, ...]
    """Dimensions."""
    pieces: Callable[[], Iterable[bytes]]
    """Returns its bytes; called every time the blob is made."""
    origin: str
    """Where it comes from, for messages."""
    stored: StoredTensor | None = None
    """What holds exactly these bytes, where anything does."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def as_stored(tensor: StoredTensor) -> Tensor:
    """Return a tensor that is taken as it is.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.models.folder import LocalFolder
    >>> stored = StoredTensor(LocalFolder(Path(".")), "model.safetensors", "w", "F32", (2, 3), 0, 24)
    >>> as_stored(stored).nbytes, as_stored(stored).stored is stored
    (24, True)
    """
    return Tensor(tensor.dtype, tensor.shape, tensor.pieces, tensor.where, tensor)


def read_weights(folder: Folder, chosen: Any = None) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name: of its index's shards, or of its only safetensors file.

    Parameters
    ----------
    folder
        Where they are.
    chosen
        The file or index that config.json names (`transformers_weights`), if any.

    Raises
    ------
    CheckpointError
        Where there is none, where it is pickled, or where a file is absent, truncated or damaged.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from daskinfer.models.folder import LocalFolder
    >>> save_file({"w": np.zeros((2, 3), np.float32)}, "model.safetensors")
    >>> [(name, tensor.dtype, tensor.shape) for name, tensor in read_weights(LocalFolder(Path("."))).items()]
    [('w', 'F32', (2, 3))]
    """
    names = folder.names()
    if chosen is not None:
        if chosen not in names or not chosen.endswith((".safetensors", _INDEX)):
            raise CheckpointError(
                f"{folder.url}/config.json: transformers_weights is {chosen!r}, and no such safetensors file is there",
                hint="Fetch the checkpoint again.",
            )
        return _read_shards(folder, names, chosen) if chosen.endswith(_INDEX) else read_header(folder, chosen)
    if "model.safetensors" in names:
        return read_header(folder, "model.safetensors")
    if f"model{_INDEX}" in names:
        return _read_shards(folder, names, f"model{_INDEX}")
    files = [name for name in names if name.endswith(".safetensors")]
    if len(files) == 1:
        return read_header(folder, files[0])
    if files:
        raise CheckpointError(
            f"{folder.url}: {len(files)} safetensors files, but no model.safetensors.index.json",
            hint="Download the index too, or save the model with `save_pretrained`.",
        )
    refuse_pickles(folder.url, names)
    raise CheckpointError(
        f"{folder.url}: no model.safetensors and no model.safetensors.index.json",
        hint="Download the weights too, or save the model with `save_pretrained`.",
    )


def refuse_pickles(url: str, names: Sequence[str]) -> None:
    """Raise `CheckpointError` where any of the files is pickled; none is ever opened.

    Examples
    --------
    >>> refuse_pickles("here", ["config.json"])
    >>> refuse_pickles("here", ["pytorch_model.bin"])
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: here: only pickled weights (pytorch_model.bin), which can run code when they are read...
    """
    shards = [name for name in names if name == ".metadata" or name.endswith(".distcp")]
    if shards:
        raise CheckpointError(
            f"{url}: a torch.distributed checkpoint ({', '.join(shards[:3])}), which can run code when it is read",
            hint="Convert it where you trust it: load it with torch.distributed.checkpoint.format_utils, "
            "then model.save_pretrained(NEW).",
        )
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise CheckpointError(
            f"{url}: only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read",
            hint="Convert them where you trust them: AutoModel.from_pretrained(DIR).save_pretrained(NEW), "
            "or safetensors.torch.save_file for a state_dict.",
        )


def read_header(folder: Folder, file: str) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises
    ------
    CheckpointError
        If the file is truncated or its header does not describe its bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from daskinfer.models.folder import LocalFolder
    >>> save_file({"w": np.zeros((2, 3), np.float32)}, "model.safetensors")
    >>> stored = read_header(LocalFolder(Path(".")), "model.safetensors")["w"]
    >>> stored.dtype, stored.shape, stored.begin, stored.end
    ('F32', (2, 3), 72, 96)
    """
    where = f"{folder.url}/{file}"
    size = folder.size(file)
    if size is None:
        raise CheckpointError(f"{where}: no such file", hint="Download every file of the checkpoint.")
    prefix = folder.read(file, 0, min(8, size))
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if _LARGEST_HEADER < length <= size - 8:
        raise CheckpointError(
            f"{where}: its header has {length:,} bytes, and at most {_LARGEST_HEADER:,} are read", hint=DAMAGED
        )
    if not 2 <= length <= size - 8:
        raise CheckpointError(f"{where}: not a whole safetensors file ({size} bytes)", hint=DAMAGED)
    try:
        text = folder.read(file, 8, 8 + length)
        refuse_dense(text)
        if (count := text.count(b'"data_offsets"')) > _MOST_TENSORS:
            raise ValueError(f"it names {format_amount(count, 'tensor')}, and at most {_MOST_TENSORS:,} are read")
        header: dict[str, Any] = parse_json(text)
        tensors = {
            name: StoredTensor(
                folder,
                file,
                name,
                str(entry["dtype"]),
                _read_shape(entry["shape"]),
                8 + length + int(entry["data_offsets"][0]),
                8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        made_for = str((header.get("__metadata__") or {}).get("format"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{where}: its safetensors header cannot be read ({error})", hint=DAMAGED) from error
    _check_layout(where, size, 8 + length, tensors)
    if made_for in _OTHER_FORMATS:
        raise CheckpointError(
            f"{where}: its tensors have the names and the order of dimensions of {made_for}",
            hint="Load the model where it was made, and save it with PyTorch's classes.",
        )
    return tensors


def _read_shape(shape: Sequence[Any]) -> tuple[int, ...]:
    # The product of a million numbers takes minutes.
    if len(shape) > _MOST_AXES:
        raise ValueError(f"a tensor of it has {len(shape):,} axes")
    return tuple(int(number) for number in shape)


@dataclass(frozen=True, slots=True)
class GroupFile:
    """One layer group, its bytes read only when asked for."""

    name: str
    """Path of its unit: embeddings, encoder.layer.0, ..., classifier."""
    tensors: tuple[tuple[str, Tensor], ...]
    """Names in the snapshot, and the tensors."""

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for _, tensor in self.tensors)

    @property
    def stored(self) -> dict[str, StoredTensor] | None:
        """Where the source itself holds each tensor's bytes; None where any of them has to be converted."""
        found = {name: tensor.stored for name, tensor in self.tensors if tensor.stored is not None}
        return found if len(found) == len(self.tensors) else None

    def blob(self) -> bytes:
        """Return the group as a safetensors file; equal checkpoints give equal bytes."""
        return serialize(self.tensors)


def serialize(tensors: Sequence[tuple[str, Tensor]]) -> bytes:
    r"""Return a safetensors file of the given (name, tensor) pairs; equal input gives equal bytes.

    Examples
    --------
    >>> from safetensors.numpy import load
    >>> tensor = Tensor("U8", (2,), lambda: [b"\x01\x02"], "here")
    >>> load(serialize([("w", tensor)]))["w"]
    array([1, 2], dtype=uint8)
    """
    # Wide types first keeps every tensor aligned to its own type, as safetensors itself does.
    ordered = sorted(tensors, key=lambda pair: (-ITEM_SIZES[pair[1].dtype], pair[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream = BytesIO()
    stream.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in ordered:
        for piece in tensor.pieces():
            stream.write(piece)
    return stream.getvalue()


def _read_shards(folder: Folder, names: list[str], index: str) -> dict[str, StoredTensor]:
    try:
        if (folder.size(index) or 0) > _LARGEST_HEADER:
            raise ValueError("it is too long")
        text = folder.read(index)
        refuse_dense(text)
        weight_map: dict[str, str] = parse_json(text)["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder.url}/{index}: no readable weight_map", hint="Fetch it again.") from error
    absent = [shard for shard in shards if shard not in names]
    if absent:
        raise CheckpointError(
            f"{folder.url}: the index names {absent[0]}, which is not there", hint="Download every shard."
        )
    headers = {shard: read_header(folder, shard) for shard in shards}
    lacking = sorted(name for name, shard in weight_map.items() if name not in headers[shard])
    if lacking:
        raise CheckpointError(
            f"{folder.url}/{weight_map[lacking[0]]}: no tensor {lacking[0]}, which the index promises",
            hint="Fetch the checkpoint again.",
        )
    found = {name: headers[shard][name] for name, shard in weight_map.items()}
    for header in headers.values():
        # transformers takes all that is in the shards, whatever the index says; of two copies, the last.
        for name, tensor in header.items():
            if tensor is not found.setdefault(name, tensor) and not _are_copies(tensor, found[name]):
                raise CheckpointError(
                    f"{tensor.where}: {found[name].file} holds another tensor of that name",
                    hint="Fetch the checkpoint again, or save it once with transformers.",
                )
    return found


def _are_copies(first: StoredTensor, second: StoredTensor) -> bool:
    kinds = [(each.dtype, each.shape) for each in (first, second)]
    return kinds[0] == kinds[1] and all(map(bytes.__eq__, first.pieces(), second.pieces()))


def _check_layout(where: str, size: int, begin: int, tensors: dict[str, StoredTensor]) -> None:
    position = begin
    for tensor in sorted(tensors.values(), key=lambda item: (item.begin, item.end)):
        item = ITEM_SIZES.get(tensor.dtype)
        if item is None:
            raise CheckpointError(
                f"{where}: tensor {tensor.name} is stored as {tensor.dtype}, which is not supported",
                hint="Publish a checkpoint in float32, bfloat16 or float16.",
            )
        if tensor.begin != position or tensor.end - tensor.begin != prod(tensor.shape) * item:
            raise CheckpointError(f"{where}: the bytes of tensor {tensor.name} do not match its header", hint=DAMAGED)
        position = tensor.end
    if position != size:
        raise CheckpointError(
            f"{where}: {size} bytes, but its header describes {position}: the file is truncated or has bytes added",
            hint=DAMAGED,
        )
