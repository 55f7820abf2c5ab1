"""What the scheduler and the workers tell a client unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from distributed import Client


@contextmanager
def hear_topic(client: Client, topic: str, hear: Callable[[Any], None]) -> Iterator[None]:
    """Hear the messages of a topic, in a thread of the client's.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock()
    >>> with hear_topic(client, "daskinfer-loading", print):
    ...     client.subscribe_topic.call_args.args[1]((0.0, {"bytes": 1000}))
    {'bytes': 1000}
    """

    def take(event: tuple[float, Any]) -> None:
        hear(event[1])

    client.subscribe_topic(topic, take)
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def hear_workers(
    client: Client, added: Callable[[str], None], removed: Callable[[str, Sequence[object]], None]
) -> AbstractContextManager[None]:
    """Hear of workers that come, and of those that go with the keys of their tasks, in a thread of the client's.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock()
    >>> with hear_workers(client, added=print, removed=print):
    ...     client.subscribe_topic.call_args.args[1]((0.0, {"action": "add-worker", "worker": "tcp://a:1"}))
    tcp://a:1
    """

    def hear(message: Any) -> None:
        if not isinstance(message, dict):
            return
        address = str(message.get("worker"))
        if message.get("action") == "remove-worker":
            removed(address, list(message.get("processing-tasks", ())))
        elif message.get("action") == "add-worker":
            added(address)

    return hear_topic(client, "all", hear)
