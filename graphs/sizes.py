"""Telling Dask how many bytes our values hold; by default it would see an object of 50 bytes."""

from __future__ import annotations

from dask.sizeof import sizeof

from daskinfer.graphs.handoff import Encoded, Handoff
from daskinfer.storage.inputs.row_batch import RowBatch

# The Python objects around the buffers.
_OBJECT_BYTES = 500


def register_sizes() -> None:
    """Register `sizeof` for everything that tasks hand to tasks.

    Examples
    --------
    >>> import numpy as np
    >>> register_sizes()
    >>> sizeof(Handoff({"embedding": np.zeros(1000)}, trail=()))
    8500
    """

    sizeof.register(Handoff, _size_of_handoff)
    sizeof.register(Encoded, _size_of_encoded)
    sizeof.register(RowBatch, _size_of_rows)


def _size_of_handoff(value: Handoff) -> int:
    return _OBJECT_BYTES + value.nbytes


def _size_of_encoded(value: Encoded) -> int:
    return _OBJECT_BYTES + value.nbytes


def _size_of_rows(value: RowBatch) -> int:
    return (
        _OBJECT_BYTES
        + int(value.table.nbytes)
        + value.positions.nbytes
        + sum(array.nbytes for array in value.arrays.values())
    )
