"""The part of docs/performance.md that is written by the results themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.charts import draw_chart
from benchmarks.machine import name_machine
from benchmarks.results import read_results
from benchmarks.tables import COLUMNS, describe_limits, list_rows

_BEGIN, _END = "<!-- results: python -m benchmarks page -->\n", "<!-- end of results -->\n"


def write_page(root: Path) -> None:
    """Write the results of benchmarks/results into the page, and a chart of each case beside it."""
    results = {name: one for name, one in read_results(root / "benchmarks/results").items() if name in CASES}
    page = root / "docs/performance.md"
    page.write_text(fill(page.read_text(), results))
    charts = root / "docs/performance"
    charts.mkdir(exist_ok=True)
    for name, result in results.items():
        (charts / f"{name}.svg").write_text(draw_chart(result))


def fill(page: str, results: dict[str, dict[str, Any]]) -> str:
    """Return the page with these results between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    parts = [describe(results[name]) for name in CASES if name in results]
    return "".join([before, _BEGIN, *parts, _END, after])


def describe(result: dict[str, Any]) -> str:
    """Return a case as Markdown."""
    lines = [f"\n### {result['name']}\n", f"{result['rows']:,} rows: {result['what']}; {result['repeats']} rounds. "]
    lines[-1] += f"{name_machine(result['machine'])}. {describe_limits(result)}\n".replace("limits:", "Limits:")
    lines += [f"![rows a second]({'performance/' + result['name']}.svg)\n", _row(COLUMNS)]
    lines.append(_row(["---"] + ["---:"] * (len(COLUMNS) - 1)))
    lines += [_row(line) for line in list_rows(result)]
    lines += [f"\nNot measured here: {name} ({reason})." for name, reason in result["skipped"].items()]
    return "\n".join(lines) + "\n"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
