"""A partition's rows as the model takes them: token ids, or arrays of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """Items that are variants of rows: each with one token masked."""

    rows: NDArray[np.int32]
    """Row of every item, (items,)."""
    positions: NDArray[np.int32]
    """Token of that row which is masked, (items,)."""
    mask: int
    """Id of the mask token."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """What a model computes of a partition's rows. Items are rows, or variants of rows."""

    ids: NDArray[np.int32]
    """Token ids of all rows end to end, (tokens,); empty for models without text."""
    starts: NDArray[np.int64]
    """First token of every row and the end of the last, (rows + 1,); rows without text count their cost instead."""
    pad: int = 0
    """Id that fills short rows."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """Input name -> (rows, ...) values, for models that take arrays."""
    variants: Variants | None = None
    """What the items are, where they are not the rows."""
    types: NDArray[np.int32] | None = None
    """Token types of all rows end to end, (tokens,); None where all are 0."""
    truncated: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Rows whose text was longer than a row may be, ascending."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of every item in tokens, (items,)."""
        lengths: NDArray[np.int64] = np.diff(self.starts)
        return lengths if self.variants is None else lengths[self.variants.rows]

    def batch(self, items: Sequence[int], length: int) -> dict[str, Array]:
        """Return the model's inputs for some items, (items, ...) each.

        Text comes as `input_ids` and `attention_mask`, and `token_type_ids` where not all are 0: int64 (items, length);
        variants add `position`, and `target`, the id that was there: int64 (items,) each.
        """
        chosen = np.asarray(items, dtype=np.int64)
        rows = chosen if self.variants is None else self.variants.rows[chosen].astype(np.int64)
        inputs: dict[str, Array] = {name: values[rows] for name, values in self.arrays.items()}
        if not self.ids.size:
            return inputs
        begins = self.starts[rows]
        columns = np.arange(length)
        mask = columns < (self.starts[rows + 1] - begins)[:, None]
        ids = np.full(mask.shape, self.pad, dtype=np.int64)
        places = (begins[:, None] + columns)[mask]
        ids[mask] = self.ids[places]
        if self.types is not None:
            inputs["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
            inputs["token_type_ids"][mask] = self.types[places]
        if self.variants is not None:
            positions = self.variants.positions[chosen].astype(np.int64)
            masked = np.arange(len(rows)), positions
            inputs |= {"position": positions, "target": ids[masked]}
            ids[masked] = self.variants.mask
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64), **inputs}
