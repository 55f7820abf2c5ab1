"""Two finished outputs, compared."""

from __future__ import annotations

from datetime import UTC, datetime

from daskinfer.planning.comparison import compare_parts, merge_parts
from daskinfer.planning.judgement import judge
from daskinfer.spec.comparison import ComparedOutput, GateReport, PartComparison
from daskinfer.spec.recipe.gate import Gate
from daskinfer.storage.outputs.pairing import check_pair, pair_parts
from daskinfer.storage.outputs.reading import SealedOutput, open_output
from daskinfer.storage.registry.publishing.publish import Watch


def compare(current: str, candidate: str, gate: Gate | None = None, *, watch: Watch | None = None) -> GateReport:
    """Compare two finished outputs of the same input, row by row, holding one partition of each at a time.

    Parameters
    ----------
    current
        URL of the output that is in use.
    candidate
        URL of the one that would take its place, of the same columns, in any format.
    gate
        When the candidate passes; the default thresholds where it is left out.
    watch
        Called with what is being done, and how many of how many rows are done.

    Raises
    ------
    Incomparable
        One is not finished, or they are not of the same rows and columns.
    IntegrityError
        One is damaged.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.zarr", job="after", shift=0.25)
    >>> report = compare("before.jsonl", "after.zarr", Gate(min_rows=3, max_changed=0.5))
    >>> report.verdict, [(check.field, check.value) for check in report.checks if not check.passed]
    ('failed', [('score', 1.0)])
    """
    gate = gate or Gate()
    tell = watch or (lambda doing, done, total: None)
    one, other = open_output(current), open_output(candidate)
    check_pair(one, other)
    found: PartComparison | None = None
    for before, after in pair_parts(one, other):
        part = compare_parts(before, after, one.layout.fields, gate.tolerance)
        found = part if found is None else merge_parts([found, part])
        tell("comparing", before.partition.first_row + before.partition.rows, one.layout.rows)
    if found is None:
        raise AssertionError("an output has at least one row")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return judge(found, gate, _describe(one), _describe(other), created)


def _describe(output: SealedOutput) -> ComparedOutput:
    about = output.layout.metadata
    return ComparedOutput(
        job=output.layout.job,
        checkpoint=about.get("checkpoint", ""),
        snapshot=about.get("snapshot", ""),
        output=output.url,
    )
