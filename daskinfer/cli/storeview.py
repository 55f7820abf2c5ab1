"""What an examination of a store found, as text on stdout."""

from __future__ import annotations

from rich.console import Console

from daskinfer.cli.text import Text
from daskinfer.spec.storecheck import StoreReport


def print_examination(report: StoreReport) -> None:
    """Print a line for each check."""
    console = Console(highlight=False, soft_wrap=True)
    verdict = ("safe", "bold green") if report.safe else ("not safe", "bold red")
    console.print(Text.assemble(verdict, "  ", report.url))
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        mark = ("ok    ", "green") if check.passed else ("failed", "red")
        console.print(Text.assemble("  ", mark, f"  {check.name:<{width}}  ", check.detail))
    timings = ", ".join(f"{name} {value:.3g} ms" for name, value in report.milliseconds.items())
    console.print(Text.assemble("  ", ("took  ", "dim"), f"  {timings}"))
    if report.hint:
        console.print(Text.assemble(("hint: ", "cyan"), report.hint))
