"""Asking workers whether they can connect to others."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from distributed import Client

from daskinfer.runtime.cluster.worker_calls import ask_workers
from daskinfer.runtime.protocol.keys import Link

TRY_SECONDS = 2.0
"""How long a connection may take."""
_ANSWER_SECONDS = TRY_SECONDS + 2


def try_links(client: Client, links: Collection[Link]) -> dict[Link, bool]:
    """Return which links are there, of those whose first worker answers.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch(f"{__name__}.ask_workers", return_value={"tcp://a:1": {"tcp://b:1": False}}):
    ...     try_links(None, [("tcp://a:1", "tcp://b:1"), ("tcp://c:1", "tcp://b:1")])
    {('tcp://a:1', 'tcp://b:1'): False}
    """
    asked: defaultdict[str, list[str]] = defaultdict(list)
    for worker, other in links:
        asked[worker].append(other)
    answers = ask_workers(client, _ANSWER_SECONDS, _try_all, asked)
    return {(worker, other): is_there for worker, reached in answers.items() for other, is_there in reached.items()}


async def _try_all(others: Sequence[str]) -> dict[str, bool]:
    return await asyncio.to_thread(_connect_all, others)


def _connect_all(others: Sequence[str]) -> dict[str, bool]:
    with ThreadPoolExecutor(len(others)) as threads:
        return dict(zip(others, threads.map(can_connect, others), strict=True))


def can_connect(worker: str) -> bool:
    """Whether a connection from this process to a worker can be made.

    Its kernel answers, and nothing is said over the connection: neither side need have time for it, whatever holds Python's
    lock there.

    Examples
    --------
    >>> with socket.create_server(("127.0.0.1", 0)) as server:
    ...     place = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    ...     can_connect(place)
    True
    >>> can_connect(place)
    False
    """
    place = urlsplit(worker)
    if place.port is None:  # an address of this process, not of a network
        return True
    try:
        socket.create_connection((place.hostname, place.port), TRY_SECONDS).close()
    except OSError:
        return False
    return True
