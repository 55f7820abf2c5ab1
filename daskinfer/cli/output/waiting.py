"""What a command waits for, and for how long: one line on a terminal's stderr, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from daskinfer.units import format_duration


@contextmanager
def waiting(what: str) -> Iterator[Callable[[float, str], None]]:
    """Show what is being waited for; yields a function that takes the seconds so far and the newest words."""
    from rich.console import Console

    with Console(stderr=True).status(what) as line:
        yield lambda seconds, doing: line.update(f"{doing} ({format_duration(seconds)})")
