"""The gate report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from daskinfer.reports.page import load_template
from daskinfer.spec.comparison import Both, FieldComparison, GateReport
from daskinfer.spec.recipe.gate import Gate


@dataclass(frozen=True, slots=True)
class Pair:
    """Two bars beside each other."""

    name: str
    """What they are of."""
    rows: Both[int]
    """How much they stand for."""
    current: float
    """Length of one, in percent of the longest."""
    candidate: float
    """Length of the other."""


def render_gate(report: GateReport) -> str:
    """Return a self-contained page, light or dark as the reader's system is.

    Examples
    --------
    >>> from daskinfer.api import compare
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.jsonl", job="after")
    >>> render_gate(compare("before.jsonl", "after.jsonl"))[:15]
    '<!doctype html>'
    """
    return load_template("gate.html.jinja").render(
        report=report,
        failures=[check for check in report.checks if not check.passed],
        meanings={name: info.description for name, info in Gate.model_fields.items()},
        distributions=[draw_distribution(field) for field in report.fields],
        labels=[draw_labels(field) for field in report.fields],
    )


def draw_distribution(field: FieldComparison) -> list[Pair]:
    """Return a pair for every slice of a column's distribution, in their order.

    Examples
    --------
    >>> from daskinfer.api import compare
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.jsonl", job="after")
    >>> label, score = compare("before.jsonl", "after.jsonl").fields
    >>> sum(pair.rows.candidate for pair in draw_distribution(score))
    3
    """
    return _stretch((f"{bar.low:.4g} to {bar.high:.4g}", bar.rows) for bar in field.bars)


def draw_labels(field: FieldComparison) -> list[Pair]:
    """Return a pair for every label whose number is told.

    Examples
    --------
    >>> from daskinfer.api import compare
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.jsonl", job="after")
    >>> label, score = compare("before.jsonl", "after.jsonl").fields
    >>> [(pair.name, pair.current) for pair in draw_labels(label)]
    [('class-0', 100.0), ('class-1', 100.0), ('class-2', 100.0)]
    """
    return _stretch((found.label, found.rows) for found in field.labels)


def _stretch(found: Iterable[tuple[str, Both[int]]]) -> list[Pair]:
    pairs = list(found)
    most = max((max(rows.current, rows.candidate) for _, rows in pairs), default=0) or 1
    return [Pair(name, rows, 100 * rows.current / most, 100 * rows.candidate / most) for name, rows in pairs]
