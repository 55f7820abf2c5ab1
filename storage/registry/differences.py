"""What differs between two checkpoints, and by how much: only tensors whose digests differ are read, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from daskinfer.errors import CorruptBlob
from daskinfer.spec.registry.upkeep import Changes, Difference, TensorChange, TensorForm
from daskinfer.spec.snapshot import LayerGroup, Manifest, TensorEntry
from daskinfer.storage.objects.store_errors import ShortRead
from daskinfer.storage.objects.streams import read_pieces
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.tensors.range_reads import DAMAGED, locate

Array = NDArray[Any]
Watch = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many bytes are done."""

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind).newbyteorder("<") if np.dtype(kind).kind in "iufb" else np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.uint8,
    }.items()
}
_ELEMENTS = 2**20

Pair = tuple[LayerGroup, TensorEntry]


def compare(registry: Registry, before: str, after: str, watch: Watch | None = None) -> Difference:
    """Return what differs between two checkpoints of a registry.

    Parameters
    ----------
    registry
        Where both are.
    before, after
        `NAME@...`, yanked ones too.
    watch
        Called with the progress.

    Raises
    ------
    CheckpointError
        There is no such checkpoint.
    CorruptBlob
        A tensor that had to be read is damaged.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> difference = compare(make_registry("registry", versions=2), "mini@v1", "mini@v2")
    >>> difference.files.changed, difference.groups.changed
    (('vocab.txt',), ('embeddings', 'layer.0', 'layer.1'))
    """
    first, second = (registry.resolve(reference, yanked=True) for reference in (before, after))
    left, right = registry.manifest(first.snapshot), registry.manifest(second.snapshot)
    others = _describe(right)
    ours, theirs = _list_tensors(left), _list_tensors(right)
    tensors = _compare_names(
        *({name: _identify(entry) for name, (_, entry) in each.items()} for each in (ours, theirs))
    )
    pairs = [(ours[name], theirs[name]) for name in ours if name in set(tensors.changed)]
    # What cannot be subtracted is not read either.
    measured = [pair for pair in pairs if _is_comparable(*pair)]
    total = sum(entry.end - entry.begin for pair in measured for _, entry in pair)
    counter = _Counter(watch or (lambda doing, done, total: None), total)
    return Difference(
        before=first,
        after=second,
        facts={name: (fact, others[name]) for name, fact in _describe(left).items() if fact != others[name]},
        files=_compare_names(
            {piece.path: piece.sha256 for piece in left.files}, {piece.path: piece.sha256 for piece in right.files}
        ),
        groups=_compare_names(
            {group.name: group.sha256 for group in left.groups}, {group.name: group.sha256 for group in right.groups}
        ),
        tensors=tensors,
        changes=tuple(_measure(registry.url, *pair, counter) for pair in pairs),
        read=counter.done,
    )


@dataclass(slots=True)
class _Counter:
    watch: Watch
    total: int
    done: int = 0

    def __call__(self, size: int) -> None:
        self.done += size
        self.watch("comparing", self.done, self.total)


def _list_tensors(manifest: Manifest) -> dict[str, Pair]:
    return {f"{group.name}/{entry.name}": (group, entry) for group in manifest.groups for entry in group.tensors}


def _identify(entry: TensorEntry) -> tuple[str, str, tuple[int, ...]]:
    return entry.blake3, entry.dtype, entry.shape


def _describe(manifest: Manifest) -> dict[str, str]:
    entry = manifest.entry
    return {
        "architecture": manifest.architecture,
        "dtype": manifest.dtype,
        "tied": ", ".join(f"{name} = {target}" for name, target in sorted(manifest.tied.items())) or "none",
        "entry": "none" if entry is None else f"{entry.function} ({entry.source})",
    }


def _compare_names(before: Mapping[str, object], after: Mapping[str, object]) -> Changes:
    changed = tuple(name for name in before if name in after and before[name] != after[name])
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=changed,
        same=sum(name in after for name in before) - len(changed),
    )


def _is_comparable(before: Pair, after: Pair) -> bool:
    one, other = before[1], after[1]
    return one.shape == other.shape and one.dtype in _DTYPES and other.dtype in _DTYPES


def _measure(registry_url: str, before: Pair, after: Pair, count: Callable[[int], None]) -> TensorChange:
    (group, one), (_, other) = before, after
    forms = [TensorForm(dtype=entry.dtype, shape=entry.shape) for entry in (one, other)]
    change = TensorChange(group=group.name, name=one.name, before=forms[0], after=forms[1])
    if not _is_comparable(before, after):
        return change
    sums = _Sums()
    pieces = zip(_read_elements(registry_url, before, count), _read_elements(registry_url, after, count), strict=True)
    for left, right in pieces:
        sums.add(left, right)
    finite = sums.elements - sums.not_finite
    return change.model_copy(
        update={
            "elements": sums.elements,
            "changed": sums.changed,
            "greatest": sums.greatest,
            "mean": sums.total / finite if finite else None,
            "relative": math.sqrt(sums.squares / sums.norm) if sums.norm else None,
            "not_finite": sums.not_finite,
        }
    )


def _read_elements(registry_url: str, pair: Pair, count: Callable[[int], None]) -> Iterator[Array]:
    """Yield a tensor's elements in order, and after the last ones make sure that they were the published ones."""
    group, entry = pair
    dtype = _DTYPES[entry.dtype]
    url, hasher = locate(registry_url, pair), blake3()
    where = f"tensor {entry.name} of layer group {group.name} in {url}"
    try:
        for data in read_pieces(url, entry.begin, entry.end, _ELEMENTS * dtype.itemsize):
            hasher.update(data)
            count(len(data))
            yield np.frombuffer(data, dtype)
    except (FileNotFoundError, ShortRead) as error:
        raise CorruptBlob(f"{where}: its file is gone or too short", hint=DAMAGED) from error
    if hasher.hexdigest() != entry.blake3:
        raise CorruptBlob(f"{where}: it is damaged", hint=DAMAGED)


@dataclass(slots=True)
class _Sums:
    """What the pieces of two tensors add up to."""

    elements: int = 0
    changed: int = 0
    not_finite: int = 0
    greatest: int | float = 0
    total: int | float = 0
    squares: float = 0.0
    norm: float = 0.0

    def add(self, left: Array, right: Array) -> None:
        self.elements += len(left)
        if left.dtype.kind in "iu" and right.dtype.kind in "iu" and left.dtype == right.dtype:
            differences = _subtract_integers(left, right)
            self.changed += int(np.count_nonzero(differences))
            # In halves, whose sums cannot overflow: integers are told exactly.
            low, high = differences & np.uint64(0xFFFFFFFF), differences >> np.uint64(32)
            self.total += int(low.sum(dtype=np.uint64)) + (int(high.sum(dtype=np.uint64)) << 32)
            self.greatest = max(self.greatest, int(differences.max(initial=0)))
            wide, norms = differences.astype(np.float64), left.astype(np.float64)
        else:
            norms, other = left.astype(np.float64), right.astype(np.float64)
            equal = (norms == other) | (np.isnan(norms) & np.isnan(other))
            self.changed += int(np.count_nonzero(~equal))
            usable = np.isfinite(norms) & np.isfinite(other)
            self.not_finite += int(np.count_nonzero(~usable & ~equal))
            norms = np.where(usable, norms, 0.0)
            wide = np.abs(norms - np.where(usable, other, 0.0))
            self.total += float(wide.sum())
            self.greatest = max(self.greatest, float(wide.max(initial=0.0)))
        self.squares += float(np.dot(wide, wide))
        self.norm += float(np.dot(norms, norms))


def _subtract_integers(left: Array, right: Array) -> NDArray[np.uint64]:
    # Modulo 2**64 the difference of the larger and the smaller one is exact, signed or not.
    larger, smaller = np.maximum(left, right), np.minimum(left, right)
    difference: NDArray[np.uint64] = larger.astype(np.uint64) - smaller.astype(np.uint64)
    return difference
