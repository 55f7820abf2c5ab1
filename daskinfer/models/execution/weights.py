"""Weights on their way into a module: memory for each tensor, in its final precision and place, filled as bytes come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.tensors import STORED_DTYPES
from daskinfer.spec.snapshot import LayerGroup, Manifest, TensorEntry

_MISMATCH = "The snapshot does not belong to this configuration; publish the checkpoint again."


def find_entries(manifest: Manifest, names: Mapping[str, str]) -> dict[str, tuple[LayerGroup, TensorEntry]]:
    """Return the group and entry of every tensor that a module needs.

    Parameters
    ----------
    manifest
        What the snapshot holds; tied names lead to the tensor that is stored.
    names
        Path in the module -> name in the snapshot.

    Raises
    ------
    CheckpointError
        Where the snapshot has no such tensor.

    Examples
    --------
    >>> weight = TensorEntry(name="w", blake3="0" * 64, dtype="F32", shape=(2,), begin=0, end=8)
    >>> group = LayerGroup(name="layer.0", size=8, sha256="0" * 64, blob="blobs/0", tensors=[weight])
    >>> about = {"model": "tiny", "architecture": "BertModel", "dtype": "float32", "files": []}
    >>> found = find_entries(Manifest(groups=[group], tied={"head": "w"}, **about), {"model.head": "head"})
    >>> found["model.head"][1].name
    'w'
    """
    stored = {entry.name: (group, entry) for group in manifest.groups for entry in group.tensors}
    found = {}
    for path, name in names.items():
        pair = stored.get(manifest.tied.get(name, name))
        if pair is None:
            raise CheckpointError(f"tensor {name} is missing from the snapshot of {manifest.model}", hint=_MISMATCH)
        found[path] = pair
    return found


def fill_module(
    module: nn.Module,
    wanted: Mapping[str, TensorEntry],
    read: Callable[[Mapping[str, Filling]], int],
    *,
    device: str = "cpu",
) -> int:
    """Give a module on the meta device its weights, without a second copy of them in memory.

    Floating-point tensors take the precision that the module has in their place, others stay as stored.

    Parameters
    ----------
    module
        The skeleton; its other tensors are left alone.
    wanted
        Path in the module -> the tensor to put there. Paths that name one tensor share it, and so do paths at which
        the module holds one parameter.
    read
        Brings the bytes: is given where each tensor goes, by name in the snapshot, and returns the bytes it read.
    device
        Where the weights are to be.

    Returns
    -------
    int
        What `read` returned.

    Raises
    ------
    CheckpointError
        Where the module has no such path, or a tensor has another shape or an unknown type.

    Examples
    --------
    >>> module = nn.Linear(2, 1, bias=False, device="meta")
    >>> weight = TensorEntry(name="w", blake3="0" * 64, dtype="F32", shape=(1, 2), begin=0, end=8)
    >>> def read(fillings):
    ...     fillings["w"].buffer(0, 8)[:] = memoryview(torch.tensor([1.0, 2.0]).numpy()).cast("B")
    ...     fillings["w"].filled(0, 8)
    ...     return 8
    >>> fill_module(module, {"weight": weight}, read), module.weight.tolist()
    (8, [[1.0, 2.0]])
    """
    places = _find_places(module)
    tensors: dict[str, Tensor] = {}
    fillings: dict[str, Filling] = {}
    spare: defaultdict[int, list[Tensor]] = defaultdict(list)
    stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None  # type: ignore[no-untyped-call]
    if stream is not None:
        # Memory that is handed out may still be in use by what was queued before.
        stream.wait_stream(torch.cuda.current_stream(device))
    for path, entry in wanted.items():
        if path not in places:
            raise CheckpointError(f"tensor {entry.name}: the model has nothing called {path}", hint=_MISMATCH)
        place, paths = places[path]
        if entry.name not in tensors:
            tensors[entry.name] = tensor = _allocate(entry, place, device)
            fillings[entry.name] = Filling(tensor, STORED_DTYPES[entry.dtype], stream, spare)
        elif tuple(place.shape) != tuple(entry.shape):
            raise _wrong_shape(entry, place)
        is_parameter = isinstance(place, nn.Parameter)
        if is_parameter and not isinstance(tensors[entry.name], nn.Parameter):
            tensors[entry.name] = nn.Parameter(tensors[entry.name], requires_grad=False)
        for other in paths:
            owner, _, leaf = other.rpartition(".")
            setattr(module.get_submodule(owner), leaf, tensors[entry.name])
    count = read(fillings)
    for name, filling in fillings.items():
        if filling.missing:
            raise CheckpointError(f"tensor {name}: {filling.missing} of its bytes were not loaded", hint=_MISMATCH)
    if stream is not None:
        stream.synchronize()
    return count


@dataclass(slots=True)
class Filling:
    """One tensor being filled from its stored bytes.

    Bytes of a tensor on the CPU that keeps its stored type go straight into it. All others pass through staging memory
    of a chunk's size, page-locked for CUDA, where copies run beside the reading.
    """

    tensor: Tensor
    """Where the weights go, contiguous."""
    stored: torch.dtype
    """Type of the bytes."""
    stream: torch.cuda.Stream | None = None
    """CUDA stream of the copies; the caller waits for it in the end."""
    spare: defaultdict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Staging memory to use again, by size."""
    _staging: dict[int, Tensor] = field(default_factory=dict)
    _done: dict[int, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Bytes that nobody has filled: memory of whoever had it before."""
        return self.tensor.numel() * self.stored.itemsize - sum(self._done.values())

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """Return memory for the bytes from `offset` on, which begin with a whole element."""
        if self._is_direct:
            return _view_bytes(self._slice(offset, nbytes))
        self._staging[offset] = staging = self._take(nbytes)
        return _view_bytes(staging)[:nbytes]

    def filled(self, offset: int, nbytes: int) -> None:
        """Convert and copy what was read, where that is still to be done."""
        self._done[offset] = nbytes
        if self._is_direct:
            return
        staging = self._staging.pop(offset)
        source = staging[:nbytes].view(self.stored)
        if self.stream is None:
            self._slice(offset, nbytes).copy_(source)
            self.spare[len(staging)].append(staging)
            return
        with torch.cuda.stream(self.stream):
            # Converted there: a copy that converts as well would do it here and wait.
            self._slice(offset, nbytes).copy_(source.to(self.tensor.device, non_blocking=True))

    def _take(self, nbytes: int) -> Tensor:
        if self.stream is not None:
            # torch keeps page-locked memory for the next one, but not before the copies out of it are done.
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        size = 1 << (nbytes - 1).bit_length()
        try:
            return self.spare[size].pop()
        except IndexError:
            return torch.empty(size, dtype=torch.uint8)

    @property
    def _is_direct(self) -> bool:
        return self.tensor.device.type == "cpu" and self.tensor.dtype == self.stored

    def _slice(self, offset: int, nbytes: int) -> Tensor:
        size = self.stored.itemsize
        return self.tensor.detach().view(-1)[offset // size : (offset + nbytes) // size]


def _find_places(module: nn.Module) -> dict[str, tuple[Tensor, list[str]]]:
    """Return every parameter and buffer by path, with all the paths at which the module holds it."""
    named: Iterable[tuple[str, Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    paths: defaultdict[int, list[str]] = defaultdict(list)
    for path, tensor in named:
        paths[id(tensor)].append(path)
    return {path: (tensor, paths[id(tensor)]) for path, tensor in named}


def _allocate(entry: TensorEntry, place: Tensor, device: str) -> Tensor:
    stored = STORED_DTYPES.get(entry.dtype)
    if stored is None:
        raise CheckpointError(f"tensor {entry.name}: stored as {entry.dtype}, which is not supported", hint=_MISMATCH)
    if tuple(place.shape) != tuple(entry.shape):
        raise _wrong_shape(entry, place)
    if entry.end - entry.begin != place.numel() * stored.itemsize:
        raise CheckpointError(f"tensor {entry.name}: its bytes do not match its shape {entry.shape}", hint=_MISMATCH)
    if stored.is_floating_point != place.dtype.is_floating_point:
        raise CheckpointError(
            f"tensor {entry.name}: stored as {entry.dtype}, the model has {place.dtype}", hint=_MISMATCH
        )
    return torch.empty(entry.shape, dtype=place.dtype if stored.is_floating_point else stored, device=device)


def _wrong_shape(entry: TensorEntry, place: Tensor) -> CheckpointError:
    return CheckpointError(
        f"tensor {entry.name}: shape {tuple(entry.shape)}, but the model has {tuple(place.shape)}", hint=_MISMATCH
    )


def _view_bytes(tensor: Tensor) -> memoryview:
    data: Any = tensor.view(torch.uint8).numpy().data
    return memoryview(data)
