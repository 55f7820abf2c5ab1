"""A job that stopped over its budget of refused rows: which they are, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from daskinfer.errors import DaskinferError, RejectBudgetExceeded
from daskinfer.spec.job.report import Incident
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.places import QUARANTINE
from daskinfer.storage.outputs.quarantine import find_rejects
from daskinfer.units import escape_line

SHOWN = 3
"""Rows that the error names."""


def explain_rejects(
    error: DaskinferError, output: str, job: str, incidents: Sequence[Incident], is_corrected: bool
) -> DaskinferError:
    """Return the error that ended a job; one over its budget with the first rows and what goes on from here.

    Parameters
    ----------
    error
        What ended it.
    output, job
        The job and its output.
    incidents
        What happened in this run: rows that broke the model are told there before they are in the quarantine.
    is_corrected
        Whether only a retry goes on with the job, since its input was corrected or its output is whole.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", refused=[1])
    >>> error = RejectBudgetExceeded("1 row is quarantined; errors.max_rows allows 0")
    >>> explain_rejects(error, "labels.jsonl", "demo", (), is_corrected=False).message.splitlines()[1]
    'rows.jsonl:2: not valid JSON'
    """
    if not isinstance(error, RejectBudgetExceeded):
        return error
    place, rows = join_url(absolute_url(output), QUARANTINE), []
    with suppress(DaskinferError, OSError):  # the job has ended as it has, whatever may be read of it
        place, found = find_rejects(output, job, SHOWN)
        rows = [f"{row.source}:{row.line}: {row.error}" for row in found]
    if rows:
        rows = [*rows, f"the quarantine: {place}"]
    else:
        rows = [incident.detail for incident in incidents if incident.kind == "poison"][:SHOWN]
    allow = "errors.max_rows=N"
    retry = f"daskinfer retry {job}"
    again = (
        f"Allow N rows: `{retry} --set {allow}`; or correct the rows in place and run `{retry}`."
        if is_corrected
        else f"Allow N rows: run again with `--set {allow}`; or correct the rows in place, and `{retry}` finishes the job with them."
    )
    return RejectBudgetExceeded("\n".join([error.message, *map(escape_line, rows)]), hint=again)
