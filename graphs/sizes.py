"""Telling Dask how many bytes our values hold; by default it would see an object of 50 bytes."""

from __future__ import annotations

from dask.sizeof import sizeof

from daskinfer.graphs.handoff import Handoff, Tokens
from daskinfer.storage.rows import RowBatch


def register_sizes() -> None:
    """Register `sizeof` for everything that tasks hand to tasks."""

    @sizeof.register(Handoff)
    def _size_of_handoff(value: Handoff) -> int:
        return 500 + value.nbytes

    @sizeof.register(Tokens)
    def _size_of_tokens(value: Tokens) -> int:
        return 500 + value.ids.nbytes + value.starts.nbytes + 8 * len(value.starts)

    @sizeof.register(RowBatch)
    def _size_of_rows(value: RowBatch) -> int:
        return 500 + value.table.nbytes + value.positions.nbytes
