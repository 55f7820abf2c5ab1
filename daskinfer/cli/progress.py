"""A run as it goes: one live block on a terminal, one line at the start and at the end elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from daskinfer.spec.job import Progress, Report
from daskinfer.units import escape_controls, format_bytes, format_duration

_BUSY_WIDTH = 10


class ProgressDisplay:
    """Shows every progress it is called with, on stderr.

    Parameters
    ----------
    name
        The recipe's name.
    console
        Where to write; stderr by default.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._name = name
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._started = False
        self._message = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            first = self._render(Progress(phase="preparing"))
            self._live = Live(first, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show the newest progress."""
        if self._live is not None:
            self._live.update(self._render(progress))
            if progress.message and progress.message != self._message:
                self._console.print(Text(escape_controls(progress.message), style="dim"))
            self._message = progress.message
        elif progress.job and not self._started:
            self._started = True
            self._print(f"{self._name}: job {progress.job}, {progress.rows_total:,} rows")

    def end(self, report: Report, earlier: bool) -> None:
        """Say where no one watches that it is over."""
        if not self._console.is_terminal:
            how = "was done already" if earlier else f"{report.verdict} in {format_duration(report.seconds)}"
            rows = f"{report.rows_out:,} rows out, {report.rows_quarantined:,} quarantined"
            cut = f", {report.rows_truncated:,} truncated" if report.rows_truncated else ""
            self._print(f"{self._name}: {how}, {rows}{cut}")

    def _render(self, progress: Progress) -> RenderableType:
        return render_progress(self._name, progress, plain=self._console.options.ascii_only)

    def _print(self, line: str) -> None:
        self._console.print(Text(line))


def describe_loading(progress: Progress) -> str:
    """Return how far shards are: `1.2 GB of 4.0 GB, 3 of 6 shards`."""
    loaded, total = format_bytes(progress.loaded_bytes), format_bytes(progress.total_bytes)
    return f"{loaded} of {total}, {progress.loaded_shards} of {progress.total_shards} shards"


def render_progress(name: str, progress: Progress, plain: bool = False) -> RenderableType:
    """Return the block that a terminal shows; a plain one has no other characters than those of ASCII."""
    total, done = progress.rows_total, progress.rows_done
    head = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, None, 1, None):
        head.add_column(ratio=ratio, no_wrap=True)
    # An unknown total makes a pulsing bar.
    bar = ProgressBar(
        total=total or None, completed=done, pulse=not total, complete_style="cyan", finished_style="green",
        pulse_style="cyan",
    )  # fmt: skip
    counted = f"{done:,} of {total:,} rows  {done / total:4.0%}" if total else "..."
    if progress.phase == "loading" and progress.total_shards:
        bar.total, bar.completed, counted = progress.total_bytes, progress.loaded_bytes, describe_loading(progress)
    head.add_row(Text(name, style="bold"), Text(progress.phase, style="cyan"), bar, counted)
    facts = [f"{format_duration(progress.seconds)} so far"]
    if progress.rows_per_second:
        facts.insert(0, f"{progress.rows_per_second:,.0f} rows/s")
    if progress.eta is not None:
        facts.append(f"{format_duration(progress.eta)} left")
    line = Text("   ".join(facts), style="dim")
    if progress.rows_quarantined:
        line.append(f"   {progress.rows_quarantined:,} quarantined", style="not dim yellow")
    stages = Text(style="dim", no_wrap=True, overflow="ellipsis")
    for number, busy in enumerate(progress.busy):
        filled = round(min(max(busy, 0.0), 1.0) * _BUSY_WIDTH)
        stages.append(f"{'   ' if number else ''}stage {number} ")
        full, rest = ("#", "-") if plain else ("━", "━")
        stages.append(full * filled, style="not dim green").append(rest * (_BUSY_WIDTH - filled))
        stages.append(f" {busy:.0%} busy")
    return Group(head, line, stages) if progress.busy else Group(head, line)
