"""The outline of a model: its layers in the order they run, and what crosses each cut between them.

Found once without weights, kept with the registry, and followed by every worker: no stage decides anything itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from itertools import accumulate
from operator import mul
from typing import Any, Literal

from daskinfer.spec.section import Section

Dim = tuple[int, int, int, int]
"""A size as (constant, per row, per token of the padded length, per row and token)."""

ITEM_BYTES = {
    "complex128": 16,
    "complex64": 8,
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of an element of every type that a tensor may have."""

ALIGNMENT = 64
"""Bytes: where every tensor of a bundle begins, at rest and in memory."""


class InputArray(Section):
    """An array that the model's forward takes, by name."""

    name: str
    """Keyword of the forward: input_ids, attention_mask, pixel_values ..."""
    dtype: str
    """int64, float32 ...; floating-point inputs are cast to the stage's precision."""
    shape: tuple[int | None, ...]
    """Shape of one row; None stands for the padded length in tokens."""
    bound: int | None = None
    """Integers are below this number."""


class TensorSpec(Section):
    """A tensor whose shape follows from the microbatch's."""

    dtype: str
    """Element type."""
    dims: tuple[Dim, ...]
    """Every dimension."""

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Return its shape in a microbatch of `rows` rows padded to `length` tokens."""
        return tuple(a + b * rows + c * length + d * rows * length for a, b, c, d in self.dims)

    def nbytes(self, rows: int, length: int) -> int:
        """Return its bytes in such a microbatch."""
        return reduce(mul, self.shape(rows, length), ITEM_BYTES[self.dtype])


def bundle_offsets(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return where tensors of these many bytes begin when they lie end to end, and where the last one ends, aligned.

    Examples
    --------
    >>> bundle_offsets([100, 64, 1])
    (0, 128, 192, 256)
    """
    return tuple(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))


@lru_cache(maxsize=256)
def largest_bundle(tensors: tuple[TensorSpec, ...], capacity: int, max_length: int) -> int:
    """Return the most bytes that the tensors of a microbatch take when they lie end to end, aligned.

    Parameters
    ----------
    tensors
        What crosses the edge.
    capacity
        Most padded tokens of a microbatch, rows * length.
    max_length
        Longest length in tokens; 1 where all rows have the same.

    Examples
    --------
    >>> hidden = TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0), (384, 0, 0, 0)))
    >>> hidden.shape(rows=4, length=16)
    (4, 16, 384)
    >>> largest_bundle((hidden,), capacity=2048, max_length=256) == 2048 * 384 * 4
    True
    """
    return max(
        bundle_offsets(tensor.nbytes(capacity // length, length) for tensor in tensors)[-1]
        for length in range(1, min(max_length, capacity) + 1)
    )


class Event(Section):
    """One call of a unit."""

    unit: str
    """Path of the unit."""
    structure: Any
    """How its output nests, as JSON; leaves are numbered."""
    leaves: tuple[TensorSpec, ...]
    """The tensors of its output."""
    written: tuple[int, ...] = ()
    """Those of them that something changes in place later on."""
    repeated: tuple[int, ...] = ()
    """Those of them that the forward itself changes in place, so that every later stage does it again."""


class Carried(Section):
    """A tensor that crosses a cut."""

    event: int
    """Number of the call that made it."""
    leaf: int
    """Which tensor of the call's output."""
    tensor: TensorSpec
    """What it looks like."""


class LayerOutline(Section):
    """A layer, with whatever runs between it and the layer before."""

    name: str
    """Path of the layer."""
    units: tuple[str, ...]
    """Paths of all units that run with it; the first layer's include the embeddings, the last one's the head."""
    tensors: tuple[str, ...]
    """Names in the snapshot of all their tensors."""
    begin: int
    """First event."""
    end: int
    """One past the last event."""
    flops: tuple[int, int]
    """Operations of a row of L tokens: first * L + second * L**2; of a row, where lengths are fixed: first."""
    cut: tuple[Carried, ...]
    """What crosses a cut before this layer; empty for the first."""


class Sharing(Section):
    """Which rows may share a microbatch, found by comparing rows alone with the same rows among others."""

    rows: Literal["any", "same length", "none"] = "any"
    """Which rows of more than `beyond` tokens share one."""
    beyond: int = 0
    """Rows of up to so many tokens share with one another, and never with longer ones."""
    reset: bool = False
    """Whether what the module holds besides its weights is put back before every microbatch."""
    reason: str | None = None
    """What was seen where any rows shared a microbatch; None where nothing was."""

    @property
    def is_free(self) -> bool:
        """Whether nothing is asked of microbatches."""
        return self.rows == "any" and not self.beyond and not self.reset

    def describe(self) -> str:
        """Return what microbatches hold, and why."""
        if self.is_free:
            return "rows of any length together"
        kinds = {"any": "rows of any length", "same length": "rows of one length", "none": "one row each"}
        words = kinds[self.rows]
        if self.beyond:
            words += f" beyond {self.beyond} tokens, apart from shorter ones"
        if self.reset:
            words += ", the module's state put back before each"
        return f"{words}: {self.reason}" if self.reason else words


class Outline(Section):
    """A model as planning sees it and as stages follow it."""

    schema_: Literal["daskinfer.outline/1"] = "daskinfer.outline/1"
    """Format of this record."""
    architecture: str
    """Class name, e.g. BertModel."""
    task: str
    """What the model was built for."""
    dtype: str
    """Precision it was traced in."""
    inputs: tuple[InputArray, ...]
    """What every stage is given."""
    events: tuple[Event, ...]
    """All calls of units with parameters, in order; empty where the model cannot be cut."""
    layers: tuple[LayerOutline, ...]
    """The layers that can be cut between."""
    shared: tuple[str, ...]
    """Names in the snapshot of the tensors that every stage needs: the forward reads them outside any unit."""
    outputs: dict[str, TensorSpec]
    """What the last stage returns."""
    left_out: dict[str, str] = {}
    """Outputs of the model that `forward` does not write, and why."""
    uncut: str | None = None
    """Why the model cannot be cut, where it cannot: it then has one layer."""
    sharing: Sharing | None = None
    """Which rows may share a microbatch; None where nobody has tried."""

    def tell_left_out(self) -> str:
        """Return which outputs are left out and why, in one line; empty where none is."""
        return "; ".join(f"{name} {reason}" for name, reason in self.left_out.items())
