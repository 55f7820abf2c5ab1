"""Gate reports as text on stdout."""

from __future__ import annotations

from daskinfer.cli.show import print_lines, print_table, stdout
from daskinfer.cli.text import Text
from daskinfer.ids import shorten
from daskinfer.spec.comparison import Check, ComparedOutput, FieldComparison, GateReport

_STYLES = {"passed": "bold green", "failed": "bold red"}


def print_gate(report: GateReport) -> None:
    """Print the verdict, what was compared, every check, and the figures of every column."""
    failures = [check for check in report.checks if not check.passed]
    remark = f"{len(failures)} of {len(report.checks)} checks failed" if failures else f"{len(report.checks)} checks"
    stdout().print(Text.assemble((report.verdict, _STYLES[report.verdict]), f"  {remark}"))
    print_lines(
        {
            "current": _describe(report.current),
            "candidate": _describe(report.candidate),
            "rows": f"{report.rows:,} compared, {report.current_only:,} that only the candidate refused, "
            f"{report.candidate_only:,} that only the current version did",
        }
    )
    stdout().print()
    print_table(("CHECK", "COLUMN", "LIMIT", "MEASURED", ""), [_check_cells(check) for check in report.checks], "")
    stdout().print()
    heads = (
        "COLUMN",
        "EQUAL",
        "CLOSE",
        "MEAN DIFFERENCE",
        "LARGEST",
        "MEAN",
        "COSINE",
        "NAN",
        "DRIFT",
        "FURTHEST ROWS",
    )
    print_table(heads, [[Text(cell) for cell in _field_cells(field)] for field in report.fields], "no columns")


def _describe(output: ComparedOutput) -> str:
    return f"{output.output}  {output.checkpoint} sha256:{shorten(output.snapshot)}"


def _check_cells(check: Check) -> list[Text]:
    sign = "at least" if check.threshold.startswith("min_") else "at most"
    verdict = "passed" if check.passed else "failed"
    return [
        Text(check.threshold),
        Text(check.field or "-"),
        Text(f"{sign} {check.limit:.4g}"),
        Text(f"{check.value:.4g}"),
        Text(verdict, style=_STYLES[verdict]),
    ]


def _field_cells(field: FieldComparison) -> list[str]:
    mean = field.mean
    broken = field.nan.candidate + field.infinite.candidate
    return [
        field.field.name,
        f"{field.equal:,}",
        f"{field.close:,}",
        _number(field.mean_difference),
        _number(field.largest_difference),
        "-" if mean is None else f"{mean.current:.4g} -> {mean.candidate:.4g}",
        "-" if field.mean_cosine is None else f"{field.mean_cosine:.4f}, least {field.least_cosine:.4f}",
        f"{field.nan.current + field.infinite.current:,} -> {broken:,}",
        _number(field.drift),
        ", ".join(f"{found.row:,}" for found in field.furthest) or "-",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
