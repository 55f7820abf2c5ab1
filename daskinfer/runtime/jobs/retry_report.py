"""From a retry that ended to its report, and to the report of the run whose rows it recovered."""

from __future__ import annotations

from daskinfer.runtime.jobs.input_correction import InputCorrection
from daskinfer.runtime.jobs.retry_round import RetryRound
from daskinfer.runtime.jobs.run_report import SHOWN_REJECTS, make_report
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.spec.job.report import Report
from daskinfer.spec.job.retries import RetryShare
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.quarantine import read_quarantine


def make_retry_report(session: RunSession, work: RetryRound, command: str, seconds: float, started: str) -> Report:
    """Return what a retry did; parameters are those of `make_report`.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> from daskinfer.storage.outputs.retry_rounds import next_round
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record, store = finish_job("work", "labels.jsonl", refused=[1]), JobStore("work", "demo")
    >>> session = Mock(error=None, job=Mock(record=record, store=store))
    >>> work = Mock(round=next_round(record.output, "demo"), progress=Mock(rows_left=0))
    >>> with patch(f"{__name__}.make_report", return_value=store.reports.last()):
    ...     make_retry_report(session, work, "daskinfer retry demo", seconds=2.0, started=record.created).message
    '1 of 1 quarantined rows are in the output now, and the quarantine is empty.'
    """
    record, round = session.job.record, work.round
    left = work.progress.rows_left
    recovered = round.rows - left
    report = make_report(session, command, seconds, started)
    page = session.job.store.reports.retry_url(round.number)
    share = RetryShare(
        round=round.number,
        rows_retried=round.rows,
        rows_recovered=recovered,
        inputs=_inputs_of(record.output, round.number) or record.inputs,
        seconds=seconds,
        report=page,
    )
    changes = {
        "rows_out": record.rows - left,
        "rows_quarantined": left,
        "rejects": list_rejects(record.output) if left else (),
        "retries": (share,),
        "report": page,
    }
    if session.error is None:
        changes["message"] = tell_retry(share, left)
    return report.model_copy(update=changes)


def make_finish_report(
    session: RunSession, correction: InputCorrection, command: str, seconds: float, started: str
) -> Report:
    """Return what finishing a job that stopped did; parameters are those of `make_report`.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> before, now = (Mock(partition=0, rows_quarantined=rows) for rows in (2, 0))
    >>> correction = Mock(retried=(before,), standing=lambda workspace: [now], inputs=record.inputs)
    >>> with patch(f"{__name__}.make_report", return_value=JobStore("work", "demo").reports.last()):
    ...     report = make_finish_report(Mock(), correction, "daskinfer retry demo", seconds=2.0, started=record.created)
    >>> report.retries[0].rows_recovered
    2
    """
    report = make_report(session, command, seconds, started)
    before = {commit.partition: commit.rows_quarantined for commit in correction.retried}
    now = (
        {commit.partition: commit.rows_quarantined for commit in correction.standing(session.recipe.workspace)}
        if before
        else {}
    )
    retried = sum(before.values())
    left = sum(now.get(partition, rows) for partition, rows in before.items())
    share = RetryShare(
        round=0, rows_retried=retried, rows_recovered=retried - left, inputs=correction.inputs, seconds=seconds
    )
    return report.model_copy(update={"retries": (share,)})


def tell_retry(share: RetryShare, left: int) -> str:
    """Return a sentence on a retry that ended well.

    Examples
    --------
    >>> tell_retry(RetryShare.model_construct(rows_recovered=3, rows_retried=5), left=2)
    '3 of 5 quarantined rows are in the output now; 2 stay in the quarantine.'
    """
    still = f"; {left:,} stay in the quarantine" if left else ", and the quarantine is empty"
    return f"{share.rows_recovered:,} of {share.rows_retried:,} quarantined rows are in the output now{still}."


def refresh_report(store: JobStore) -> Report | None:
    """Return the report of a job's last run with its rows as they are since its last retry; None without a report.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", refused=[1])
    >>> refresh_report(JobStore("work", "demo")).rows_out
    2
    """
    report, record = store.reports.last(), store.record()
    manifest = read_manifest(record.output)
    if report is None or manifest is None:
        return report
    shares = tuple(_find_share(store, told) for told in manifest.get("retries", []))
    if not shares:
        return report
    left = manifest["rows_quarantined"]
    return report.model_copy(
        update={
            "rows_out": manifest["rows_out"],
            "rows_quarantined": left,
            "rejects": list_rejects(record.output) if left else (),
            "retries": shares,
            "message": tell_retry(shares[-1], left),
        }
    )


def list_rejects(output: str) -> tuple[str, ...]:
    """Return the first few quarantined rows of an output, a line each.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> list_rejects(finish_job("work", "labels.jsonl", refused=[1]).output)
    ('rows.jsonl:2: not valid JSON',)
    """
    return tuple(f"{row.source}:{row.line}: {row.error}" for row in read_quarantine(output, SHOWN_REJECTS))


def _find_share(store: JobStore, told: dict[str, int]) -> RetryShare:
    report = store.reports.of_retry(told["round"])
    share = RetryShare.model_validate(told)
    if report is None or not report.retries:
        return share
    return share.model_copy(update={"seconds": report.seconds, "report": report.report})


def _inputs_of(output: str, round: int) -> str | None:
    manifest = read_manifest(output)
    retries = [] if manifest is None else manifest.get("retries", [])
    return next((told["inputs"] for told in retries if told["round"] == round), None)
