"""The hand-written loop, as a careful person would write it: over all rows, sorted by length over the whole input."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import Computation, load_here, torch_forward
from benchmarks.work import Work


def run_loop(work: Work, onednn: bool = False) -> Any:
    """One process on all cores."""
    computation = Computation(work, torch_forward(work, work.cores, onednn))
    work.mark_ready()
    return computation(work.read_rows())


def run_loops(work: Work, onednn: bool = False) -> Any:
    """A process of one core for each core, each over every other row."""
    with ProcessPoolExecutor(work.cores, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(partial(_compute_part, work, onednn), range(work.cores)))
    result = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32)
    for number, part in enumerate(parts):
        result[number :: work.cores] = part
    return result


def _compute_part(work: Work, onednn: bool, number: int) -> Any:
    computation = load_here(work, onednn)
    return computation(work.read_rows()[number :: work.cores])


PEERS = (
    Peer("loop", "hand-written loop, one process, torch as it comes", run_loop),
    Peer("loop-onednn", "the same loop, linear layers by oneDNN", partial(run_loop, onednn=True)),
    Peer("loops-onednn", "as many such loops as cores, by oneDNN", partial(run_loops, onednn=True), processes=2),
)
