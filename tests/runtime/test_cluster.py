"""What a running cluster tells of itself."""

from __future__ import annotations

import threading

from distributed import Client

from daskinfer.runtime.cluster.connection import worker_shapes


def test_all_workers_are_seen_whatever_else_the_client_asks(client: Client, addresses: list[str]) -> None:
    """A client asks for the scheduler's identity by itself too, without the workers."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            client.sync(client._update_scheduler_info)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            assert sorted(worker.address for worker in worker_shapes(client)) == addresses
    finally:
        stop.set()
        asking.join()
