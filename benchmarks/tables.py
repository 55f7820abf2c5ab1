"""Results as tables, in a terminal and on a page."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from daskinfer.units import format_bytes

WIDTH = 150
COLUMNS = (
    "",
    "start and stop, s",
    "running, s",
    "rows/s",
    "running / its",
    "whole / its",
    "share of the limit",
    "difference",
)


def list_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a line of text for each contestant; ratios are the first one's time as a part of its own."""
    lines = []
    for name, one in result["contestants"].items():
        running, whole = one["running"]["median"], one["whole"]["median"]
        ratios = [
            "{median:.2f} ({least:.2f} to {most:.2f})".format(**one["ratio"][part]) for part in ("running", "whole")
        ]
        share = "" if one["share_of_limit"] is None else f"{one['share_of_limit']['median']:.0%}"
        difference = "" if one["difference"] is None else f"{one['difference']:.0e}"
        rate = f"{result['rows'] / running:,.0f}"
        lines.append([name, f"{whole - running:.1f}", f"{running:.1f}", rate, *ratios, share, difference])
    return lines


def describe_limits(result: dict[str, Any]) -> str:
    """Return one line of what the machine needs at the least, and how even it was; empty where nothing is known."""
    found = result["limits"]
    parts = [
        f"{name} {format_bytes(found[f'{kind}_bytes'])} in {found[f'{seconds}_seconds']:.3f} s"
        for name, kind, seconds in (
            ("read", "input", "read"),
            ("write", "output", "write"),
            ("hand over by loopback", "crossing", "loopback"),
        )
        if f"{kind}_bytes" in found
    ]
    products = result["contestants"].get("products")
    if products is not None:
        spread = products["running"]
        parts.append(f"the products alone took from {spread['least']:.1f} to {spread['most']:.1f} s (noise)")
    return "limits: " + "; ".join(parts) if parts else ""


def show_contest(result: dict[str, Any]) -> None:
    """Print a case."""
    table = Table(title=f"{result['name']}: {result['rows']:,} rows, {result['what']}")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for line in list_rows(result):
        table.add_row(*line)
    console = Console(width=max(WIDTH, Console().width))
    console.print(table)
    console.print(f"medians over {result['repeats']} rounds; ratios are the first line's time as a part of each line's")
    if limits := describe_limits(result):
        console.print(limits, highlight=False)
    for name, reason in result["skipped"].items():
        console.print(f"not measured here: {name}: {reason}", highlight=False)
