"""What a job did, for people and for machines."""

from __future__ import annotations

from daskinfer.reports.page import render_html
from daskinfer.spec.job import Report

__all__ = ["render_html", "report_json"]


def report_json(report: Report) -> str:
    """Return the report as one JSON object."""
    return report.model_dump_json(indent=2)
