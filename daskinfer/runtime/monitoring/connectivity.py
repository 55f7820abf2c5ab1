"""Asking workers whether they can connect to others."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from distributed import Client
from distributed.comm.addressing import get_address_host_port

from daskinfer.runtime.protocol.keys import Link

TRY_SECONDS = 2.0
"""How long a connection may take."""
_ANSWER_SECONDS = TRY_SECONDS + 2


def try_links(client: Client, links: Collection[Link]) -> dict[Link, bool]:
    """Return which links are there, of those whose first worker answers."""
    asked: defaultdict[str, list[str]] = defaultdict(list)
    for worker, other in links:
        asked[worker].append(other)
    found: dict[Link, bool] = client.sync(_ask_all, client, asked)
    return found


async def _ask_all(client: Client, asked: Mapping[str, Sequence[str]]) -> dict[Link, bool]:
    calls = (
        client.run(_try_all, others, workers=[worker], callback_timeout=_ANSWER_SECONDS)
        for worker, others in asked.items()
    )
    # A worker that is gone, or frozen, says nothing.
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return {
        (worker, other): is_there
        for answer in answers
        if isinstance(answer, dict)
        for worker, reached in answer.items()
        for other, is_there in reached.items()
    }


async def _try_all(others: Sequence[str]) -> dict[str, bool]:
    return await asyncio.to_thread(_connect_all, others)


def _connect_all(others: Sequence[str]) -> dict[str, bool]:
    with ThreadPoolExecutor(len(others)) as threads:
        return dict(zip(others, threads.map(can_connect, others), strict=True))


def can_connect(worker: str) -> bool:
    """Whether a connection from this process to a worker can be made.

    Its kernel answers, and nothing is said over the connection: neither side need have time for it, whatever holds Python's
    lock there.
    """
    try:
        socket.create_connection(get_address_host_port(worker), TRY_SECONDS).close()
    except OSError:
        return False
    except ValueError:  # an address of this process, not of a network
        return True
    return True
