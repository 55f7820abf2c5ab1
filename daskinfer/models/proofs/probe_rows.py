"""Rows to try a model with: made one by one, put together as microbatches, and their results taken apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_axes

from daskinfer.spec.outline import InputArray, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row, as long as it is."""

    length: int
    """In tokens; 1 where rows have no length."""
    arrays: Mapping[str, Tensor]
    """Input name -> values."""


def make_row(inputs: Sequence[InputArray], length: int, seed: int, pad: int = 0) -> Row:
    """Return a row of random values; the same arguments give the same values.

    Parameters
    ----------
    inputs
        What the model takes.
    length
        Tokens of the row.
    seed
        Another one gives another row.
    pad
        Id that no token of a row has.

    Examples
    --------
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,), bound=100)
    >>> row = make_row([ids], length=5, seed=1)
    >>> row.arrays["input_ids"].shape, bool((row.arrays["input_ids"] == 0).any())
    (torch.Size([5]), False)
    """
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for array in inputs:
        shape = [length if size is None else size for size in array.shape]
        kind: torch.dtype = getattr(torch, array.dtype)
        if array.name.endswith("attention_mask"):
            made = torch.ones(shape)
        elif kind.is_floating_point:
            made = torch.randn(shape, generator=generator)
        elif array.name == "position":
            made = torch.full(shape, length - 1)
        else:
            made = torch.randint(0, array.bound or 2, shape, generator=generator)
            if array.name.endswith("input_ids") and (array.bound or 2) > 2:
                made[made == pad] = pad - 1 if pad else 1
        arrays[array.name] = made.to(kind)
    return Row(length, arrays)


def collate(rows: Sequence[Row], inputs: Sequence[InputArray], pad: int = 0) -> dict[str, Tensor]:
    """Return a microbatch: rows padded to the longest one.

    Examples
    --------
    >>> mask = InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2)
    >>> collate([make_row([mask], length, seed=0) for length in (2, 3)], [mask])["attention_mask"].tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    longest = max(row.length for row in rows)
    batch = {}
    for array in inputs:
        filler = pad if array.name.endswith("input_ids") else 0
        values = []
        for row in rows:
            # From the last axis to the first, as torch wants it.
            missing = [0 if size is not None else longest - row.length for size in reversed(array.shape)]
            values.append(
                pad_axes(row.arrays[array.name], [each for gap in missing for each in (0, gap)], value=filler)
            )
        batch[array.name] = torch.stack(values)
    return batch


def take_row(leaves: Sequence[Tensor], specs: Sequence[TensorSpec], place: int, lengths: Sequence[int]) -> list[Tensor]:
    """Return a row's part of every tensor that has rows, without what stands at its padding.

    Parameters
    ----------
    leaves
        What a model returned for a microbatch.
    specs
        How their sizes follow from rows and length.
    place
        Which row of the microbatch.
    lengths
        Tokens of all its rows.

    Examples
    --------
    >>> hidden = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0)))
    >>> take_row([torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]])], [hidden], place=0, lengths=[2, 3])
    [tensor([[1., 2.]])]
    """
    found = []
    for leaf, spec in zip(leaves, specs, strict=True):
        axes = [axis for axis, (_, per_row, _, both) in enumerate(spec.dims) if per_row or both]
        # Without rows it belongs to all of them; with rows twice it relates them to each other.
        if len(axes) == 1 and not spec.dims[axes[0]][0] and not spec.dims[axes[0]][2]:
            found.append(_take(leaf, spec, axes[0], place, lengths))
    return found


def _take(leaf: Tensor, spec: TensorSpec, axis: int, place: int, lengths: Sequence[int]) -> Tensor:
    _, per_row, _, both = spec.dims[axis]
    own = lengths[place]
    shape = (*leaf.shape[:axis], len(lengths), -1, *leaf.shape[axis + 1 :])
    part = leaf.reshape(shape).select(axis, place).narrow(axis, 0, per_row + both * own)
    for other, (constant, _, per_token, _) in enumerate(spec.dims):
        if other != axis and per_token:
            part = part.narrow(other, 0, min(constant + per_token * own, part.shape[other]))
    return part.clone()
