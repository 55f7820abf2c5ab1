"""Functions called on workers, in a bounded time: one that is frozen never answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Client


def call_workers(
    client: Client,
    workers: Sequence[str],
    seconds: float,
    function: Callable[..., Any],
    *arguments: Any,
    on_error: str = "raise",
) -> Any:
    """Call a function on workers, and return what it returns on each.

    Raises
    ------
    TimeoutError
        Not all of them answer in time. Those that wake later run it then.
    OSError
        A worker cannot be reached, and errors are raised.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> def run(function, *arguments, workers, **_):
    ...     return {worker: function(*arguments) for worker in workers}
    >>> call_workers(Mock(run=run), ["tcp://a:1"], 2.0, max, 3, 5)
    {'tcp://a:1': 5}
    """
    return client.run(function, *arguments, workers=list(workers), on_error=on_error, callback_timeout=seconds)


def ask_workers(
    client: Client, seconds: float, function: Callable[[Any], Any], questions: Mapping[str, Any]
) -> dict[str, Any]:
    """Call a function on workers at the same time, on each with its own argument; return what those that answer return.

    Examples
    --------
    >>> import asyncio
    >>> from unittest.mock import Mock
    >>> async def run(function, *arguments, workers, **_):
    ...     return {worker: function(*arguments) for worker in workers}
    >>> client = Mock(run=run, sync=lambda function, *arguments: asyncio.run(function(*arguments)))
    >>> ask_workers(client, 2.0, len, {"tcp://a:1": "abc", "tcp://b:1": "ab"})
    {'tcp://a:1': 3, 'tcp://b:1': 2}
    """
    found: dict[str, Any] = client.sync(_ask_all, client, seconds, function, questions)
    return found


async def _ask_all(
    client: Client, seconds: float, function: Callable[[Any], Any], questions: Mapping[str, Any]
) -> dict[str, Any]:
    calls = (call_workers(client, [worker], seconds, function, question) for worker, question in questions.items())
    # A worker that is gone, or frozen, says nothing.
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return {worker: answer for each in answers if isinstance(each, dict) for worker, answer in each.items()}
