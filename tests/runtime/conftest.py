"""A small cluster of real processes that the tests of this floor share."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from daskinfer.runtime.cluster.admission import Admission
from daskinfer.runtime.cluster.forking import fork_workers
from daskinfer.runtime.cluster.process_setup import set_up_processes


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Client, Admission]]:
    """A client of two workers that are set up as for a job, and what sets up those that come later."""
    workers = {number: {"cls": Nanny, "options": {"nthreads": 1, "memory_limit": 0}} for number in range(2)}
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with (
        dask.config.set(fork_workers()),
        SpecCluster(workers=workers, scheduler={"cls": Scheduler, "options": options}, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client, set_up_processes(client)


@pytest.fixture(scope="module")
def client(prepared: tuple[Client, Admission]) -> Client:
    return prepared[0]


@pytest.fixture
def addresses(client: Client) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])
