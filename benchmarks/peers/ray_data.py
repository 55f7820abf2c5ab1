"""Ray Data: the loop's function in a pool of actors of one core."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import load_here
from benchmarks.work import Work


class Actor:
    def __init__(self, work: Work) -> None:
        self._computation = load_here(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": self._computation(list(batch["row"]))}


def run(work: Work) -> Any:
    import ray

    # One more than there are actors, which is what Ray needs to hand rows on; threads are limited all the same.
    ray.init(num_cpus=work.cores + 1, include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = work.read_rows()
    blocks = -(-len(rows) // work.partition_rows)
    results = ray.data.from_items([{"row": row} for row in rows], override_num_blocks=blocks).map_batches(
        Actor,
        fn_constructor_args=(work,),
        batch_size=work.partition_rows,
        compute=ray.data.ActorPoolStrategy(size=work.cores),
        num_cpus=1,
    )
    return np.concatenate([batch["result"] for batch in results.iter_batches(batch_size=None)])


PEERS = (Peer("ray-data", "map_batches with a pool of actors", run, packages=("ray",), processes=2),)
