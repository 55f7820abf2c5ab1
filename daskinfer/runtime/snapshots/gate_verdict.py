"""What a gate said about a candidate: written once, as JSON for the alias's history and as a page for people."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.ids import shorten
from daskinfer.planning.judgement import judge
from daskinfer.spec.comparison import ComparedOutput, GateReport, PartComparison
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.record import JobRecord
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import read_record
from daskinfer.storage.objects.urls import join_url
from daskinfer.units import format_amount

GATE = "gate.json"


def judge_candidate(
    folder: str, record: JobRecord, current: SnapshotPin, candidate: SnapshotPin, comparison: PartComparison
) -> GateReport:
    """Return the verdict on a candidate, which is given once: a driver that asks again gets the first one's.

    Parameters
    ----------
    folder
        Of the job.
    record
        The job.
    current, candidate
        What was compared.
    comparison
        All pairs merged.

    Examples
    --------
    >>> from daskinfer.planning.comparison import compare_parts
    >>> from daskinfer.spec.recipe.schema import Consistency, Trial
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> rules = Consistency(canary=Trial(checkpoint="tiny@v2"))
    >>> record = record.model_copy(update={"recipe": record.recipe.model_copy(update={"consistency": rules})})
    >>> compared = compare_parts(make_results(record, 0), make_results(record, 0), record.fields, tolerance=1e-3)
    >>> judge_candidate("work/jobs/demo", record, record.first_pin, record.first_pin, compared).verdict
    'failed'
    """
    trial = record.recipe.consistency.trial
    assert trial is not None
    before, after = (
        ComparedOutput(job=record.job, checkpoint=reference, snapshot=pin.snapshot, output=record.output)
        for reference, pin in ((record.resolution.reference, current), (trial.checkpoint, candidate))
    )
    report = judge(comparison, trial.gate, before, after, datetime.now(UTC).isoformat(timespec="seconds"))
    create(join_url(folder, GATE), report.model_dump_json(indent=2).encode())
    found = read_gate(folder)
    assert found is not None
    return found


def read_gate(folder: str) -> GateReport | None:
    """Return the verdict that was given in a job, if one was.

    Examples
    --------
    >>> read_gate("work/jobs/demo") is None
    True
    """
    place = join_url(folder, GATE)
    try:
        return GateReport.model_validate_json(read_record(place))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise IntegrityError(
            f"{place} is not a gate's report",
            hint="It was damaged or changed by hand: put it back, or start over: daskinfer run RECIPE --fresh.",
        ) from error


def tell_verdict(report: GateReport) -> str:
    """Return a verdict in a sentence.

    Examples
    --------
    >>> from daskinfer.api import compare
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.jsonl", job="after")
    >>> tell_verdict(compare("before.jsonl", "after.jsonl"))
    'abababababab failed on 3 rows: min_rows'
    """
    broken = [
        f"{check.threshold}{f' of {check.field}' if check.field else ''}" for check in report.checks if not check.passed
    ]
    why = f": {', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}" if broken else ""
    return f"{shorten(report.candidate.snapshot)} {report.verdict} on {format_amount(report.rows, 'row')}{why}"
