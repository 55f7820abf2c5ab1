"""Plain Dask: the loop's function mapped over partitions of a bag or a dataframe, on workers of one core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import load_here
from benchmarks.work import Work


@contextmanager
def _start_workers(work: Work) -> Iterator[None]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=work.cores, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(_load, work)
        yield


def _load(work: Work) -> None:
    load_here(work)


def run_bag(work: Work) -> Any:
    from dask import bag

    with _start_workers(work):
        rows = bag.from_sequence(work.read_rows(), partition_size=work.partition_rows)
        return np.stack(rows.map_partitions(_compute_list, work).compute())


def _compute_list(rows: Any, work: Work) -> list[Any]:
    return list(load_here(work)(list(rows)))


def run_dataframe(work: Work) -> Any:
    import pandas
    from dask import dataframe

    with _start_workers(work):
        rows = pandas.DataFrame({"row": work.read_rows()})
        frame = dataframe.from_pandas(rows, chunksize=work.partition_rows)
        results = frame.map_partitions(_compute_series, work, meta=pandas.Series(dtype=object, name="result"))
        return np.stack(results.compute().to_list())


def _compute_series(part: Any, work: Work) -> Any:
    import pandas

    return pandas.Series(list(load_here(work)(part["row"].to_list())), index=part.index, dtype=object, name="result")


PEERS = (
    Peer("dask-bag", "dask.bag map_partitions", run_bag, packages=("dask", "distributed"), processes=2),
    Peer(
        "dask-dataframe",
        "dask.dataframe map_partitions",
        run_dataframe,
        packages=("dask", "distributed", "pandas"),
        processes=2,
    ),
)
