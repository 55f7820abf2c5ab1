"""A run as it goes: one live block on a terminal; elsewhere a line at the start, at the end, and every half minute."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from daskinfer.cli.output.text import Text
from daskinfer.spec.job.record import Progress
from daskinfer.spec.job.report import Report
from daskinfer.units import escape_controls, format_amount, format_bytes, format_duration

_BUSY_WIDTH = 10
PIPE_SECONDS = 30.0
"""Where nobody watches, a line is written as often as this."""


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
        self._latest = Progress(phase="preparing")
        self._begun = self._heard = self._entered = time.monotonic()
        self._alone: set[str] = set()
        self._ended = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="daskinfer-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn anew several times a second, also while nothing is heard.
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._ticking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show the newest progress."""
        now = time.monotonic()
        if progress.phase != self._latest.phase:
            self._entered = now
        self._latest, self._heard = progress, now
        _, is_alone, worker = progress.message.partition("worker ")
        if "left alone" in worker:
            if worker in self._alone:
                return
            self._alone.add(worker)
        if self._live is not None:
            if progress.message and progress.message != self._message and (progress.job or is_alone):
                self._console.print(Text(escape_controls(progress.message), style="dim"))
            self._message = progress.message
        elif "left alone" in worker:
            self._print(f"{self._name}: worker {escape_controls(worker)}")
        elif progress.message.startswith(("interrupted: ", "the background cluster ")):
            self._print(f"{self._name}: {escape_controls(progress.message)}")
        elif progress.job and not self._started:
            self._started = True
            self._print(f"{self._name}: job {progress.job}, {format_amount(progress.rows_total, 'row')}")

    def end(self, report: Report, earlier: bool) -> None:
        """Say where no one watches that it is over."""
        if not self._console.is_terminal:
            how = "was done already" if earlier else f"{report.verdict} in {format_duration(report.seconds)}"
            rows = f"{format_amount(report.rows_out, 'row')} out, {report.rows_quarantined:,} quarantined"
            cut = f", {report.rows_truncated:,} truncated" if report.rows_truncated else ""
            cut += f", {report.rows_not_finite:,} with NaN or infinity" if report.rows_not_finite else ""
            self._print(f"{self._name}: {how}, {rows}{cut}")

    def _tick(self) -> None:
        while not self._ended.wait(PIPE_SECONDS):
            self._print(f"{self._name}: {describe_progress(*self._now())}")

    def _now(self) -> tuple[Progress, float]:
        """Return the newest progress, its clock gone on, and the seconds that its phase has lasted."""
        now = time.monotonic()
        # The job's own clock starts later, and a phase does not last longer than the whole.
        seconds = max(self._latest.seconds + now - self._heard, now - self._begun)
        return self._latest.model_copy(update={"seconds": seconds}), now - self._entered

    def _render(self) -> RenderableType:
        return render_progress(self._name, *self._now(), plain=self._console.options.ascii_only)

    def _print(self, line: str) -> None:
        self._console.print(Text(line))


def describe_loading(progress: Progress) -> str:
    """Return how far shards are: `1.2 GB of 4.0 GB, 3 of 6 shards`."""
    loaded, total = format_bytes(progress.loaded_bytes), format_bytes(progress.total_bytes)
    return f"{loaded} of {total}, {progress.loaded_shards} of {progress.total_shards} shards"


def describe_progress(progress: Progress, lasted: float = 0.0) -> str:
    """Return how a run stands in a line: `running, 6,144 of 10,000 rows, 1,234 rows/s, 3 s left`."""
    facts: list[str] = [f"{progress.phase} for {format_duration(lasted)}"]
    if progress.phase == "loading" and progress.total_shards:
        facts.append(describe_loading(progress))
    elif progress.phase == "running":
        facts = [
            progress.phase,
            f"{progress.rows_done + progress.rows_in_work:,} of {format_amount(progress.rows_total, 'row')}",
        ]
        facts += [f"{progress.rows_per_second:,.0f} rows/s"] if progress.rows_per_second else []
        facts += [f"{format_duration(progress.eta)} left"] if progress.eta is not None else []
    if progress.rows_quarantined:
        facts.append(f"{progress.rows_quarantined:,} quarantined")
    if not progress.job and progress.message:
        facts.append(escape_controls(progress.message))
    return ", ".join(facts)


def render_progress(name: str, progress: Progress, lasted: float = 0.0, *, plain: bool = False) -> RenderableType:
    """Return the block that a terminal shows, of a phase that has lasted some seconds; a plain one is ASCII."""
    total, done = progress.rows_total, progress.rows_done + progress.rows_in_work
    head = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, None, 1, None):
        head.add_column(ratio=ratio, no_wrap=True)
    # An unknown total makes a pulsing bar.
    bar = ProgressBar(
        total=total or None, completed=done, pulse=not total, complete_style="cyan", finished_style="green",
        pulse_style="cyan",
    )  # fmt: skip
    counted = f"{done:,} of {format_amount(total, 'row')}  {done / total:4.0%}" if total else "..."
    if progress.phase == "loading" and progress.total_shards:
        bar.total, bar.completed, counted = progress.total_bytes, progress.loaded_bytes, describe_loading(progress)
    head.add_row(Text(name, style="bold"), Text(progress.phase, style="cyan"), bar, counted)
    facts = [f"{format_duration(progress.seconds)} so far"]
    if lasted >= 1 and progress.phase not in ("running", "done"):
        facts.insert(0, f"{progress.phase} for {format_duration(lasted)}")
    if not progress.job and progress.message:
        facts.insert(0, escape_controls(progress.message))
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
