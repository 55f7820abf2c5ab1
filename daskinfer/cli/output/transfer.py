"""Bytes on their way, and other work done in steps: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


class TransferDisplay:
    """Shows how many of how many bytes are done, on stderr.

    Parameters
    ----------
    name
        What is transferred.
    console
        Where to write; stderr by default.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), *self._make_numbers())
        self._name = name
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(f"{name}: inspecting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show the newest numbers; `doing` says what for."""
        self._progress.update(self._task, description=f"{self._name}: {doing}", completed=done, total=total)

    def _make_numbers(self) -> tuple[ProgressColumn, ...]:
        return DownloadColumn(), TransferSpeedColumn()


class StepDisplay(TransferDisplay):
    """Shows what is being done and for how long, whatever is counted."""

    def _make_numbers(self) -> tuple[ProgressColumn, ...]:
        return (TimeElapsedColumn(),)
