"""From the sums of a comparison to its figures, and to the verdict of a gate."""

from __future__ import annotations

from collections.abc import Iterator

from daskinfer.planning.comparison import is_text, is_vector
from daskinfer.planning.histograms import draw_bars, measure_drift, measure_gap
from daskinfer.spec.comparison import (
    Both,
    Check,
    ComparedOutput,
    FieldComparison,
    FieldSums,
    GateReport,
    LabelCount,
    PartComparison,
)
from daskinfer.spec.recipe.gate import Gate

_LENGTHS = "num_tokens"
_LOGPROB = "logprob"
_LABELS_SHOWN = 12


def judge(
    comparison: PartComparison, gate: Gate, current: ComparedOutput, candidate: ComparedOutput, created: str
) -> GateReport:
    """Return the figures of a comparison and whether the candidate passes.

    Parameters
    ----------
    comparison
        All parts merged; compared with the gate's tolerance.
    gate
        The thresholds.
    current, candidate
        What was compared.
    created
        The time, ISO 8601, UTC.

    Examples
    --------
    >>> from daskinfer.spec.comparison import ComparedOutput, PartComparison
    >>> one, other = (ComparedOutput(job=job, checkpoint="m@prod", snapshot="sha256:0", output=job) for job in "ab")
    >>> found = PartComparison(tolerance=1e-3, rows=40, current_only=0, candidate_only=0, fields=())
    >>> report = judge(found, Gate(), one, other, "2026-01-01T00:00:00+00:00")
    >>> report.verdict, [check.threshold for check in report.checks if not check.passed]
    ('failed', ['min_rows'])
    """
    if comparison.tolerance != gate.tolerance:
        raise ValueError(f"compared with tolerance {comparison.tolerance}, but the gate's is {gate.tolerance}")
    fields = tuple(describe_field(sums) for sums in comparison.fields)
    checks = (*_check_rows(comparison, gate), *(check for field in fields for check in _check_field(field, gate)))
    return GateReport.make(
        verdict="passed" if all(check.passed for check in checks) else "failed",
        current=current,
        candidate=candidate,
        gate=gate,
        rows=comparison.rows,
        current_only=comparison.current_only,
        candidate_only=comparison.candidate_only,
        checks=checks,
        fields=fields,
        created=created,
    )


def describe_field(sums: FieldSums) -> FieldComparison:
    """Return the figures of one column.

    Examples
    --------
    >>> from daskinfer.spec.job.record import OutputField
    >>> label = OutputField(name="label", kind="string")
    >>> found = describe_field(FieldSums(field=label, rows=4, equal=3, close=3, labels={"cat": (2, 1), "dog": (2, 3)}))
    >>> found.changed, [(count.label, count.rows.candidate) for count in found.labels]
    (0.25, [('cat', 1), ('dog', 3)])
    """
    field = sums.field
    mean = None
    if (is_text(field) or field.kind != "string") and sums.counted.current and sums.counted.candidate:
        mean = Both[float](
            current=sums.total.current / sums.counted.current, candidate=sums.total.candidate / sums.counted.candidate
        )
    is_label = field.kind == "string" and sums.labels is not None
    drift = None
    if is_label:
        drift = measure_drift((sums.labels or {}).values())
    elif field.kind != "string" and not field.shape:
        drift = measure_gap(sums.bins)
    has_vectors = is_vector(field) and sums.rows > 0
    return FieldComparison(
        field=field,
        rows=sums.rows,
        equal=sums.equal,
        close=sums.close,
        changed=1 - sums.close / sums.rows if sums.rows else 0.0,
        broken=sums.broken,
        nan=sums.nan,
        infinite=sums.infinite,
        largest_difference=sums.largest_difference if sums.pairs else None,
        mean_difference=sums.difference / sums.pairs if sums.pairs else None,
        mean_cosine=sums.cosine / sums.rows if has_vectors else None,
        least_cosine=sums.least_cosine if has_vectors else None,
        mean=mean,
        length_drift=_relate(mean) if mean and (is_text(field) or field.name == _LENGTHS) else None,
        drift=drift,
        bars=draw_bars(sums.bins),
        labels=_choose_labels(sums),
        furthest=sums.furthest,
    )


def _relate(mean: Both[float]) -> float:
    return abs(mean.candidate - mean.current) / (mean.current or 1.0)


def _choose_labels(sums: FieldSums) -> tuple[LabelCount, ...]:
    def order(item: tuple[str, tuple[int, int]]) -> tuple[int, int, str]:
        label, (before, after) = item
        return -abs(after - before), -before, label

    chosen = sorted((sums.labels or {}).items(), key=order)[:_LABELS_SHOWN]
    return tuple(
        LabelCount(label=label, rows=Both[int](current=before, candidate=after)) for label, (before, after) in chosen
    )


def _check_rows(comparison: PartComparison, gate: Gate) -> Iterator[Check]:
    yield Check(
        threshold="min_rows", limit=gate.min_rows, value=comparison.rows, passed=comparison.rows >= gate.min_rows
    )
    whole = comparison.rows + comparison.current_only + comparison.candidate_only
    yield from _check_most("max_quarantined", gate, None, comparison.current_only / whole if whole else None)


def _check_field(found: FieldComparison, gate: Gate) -> Iterator[Check]:
    name, kind = found.field.name, found.field.kind
    if not found.rows:
        return
    yield from _check_most("max_changed", gate, name, found.changed)
    if kind == "string" and not is_text(found.field):
        yield from _check_most("max_label_changes", gate, name, found.changed)
        if found.drift is not None:
            yield from _check_most("max_label_drift", gate, name, found.drift)
    if found.length_drift is not None:
        yield from _check_most("max_length_drift", gate, name, found.length_drift)
    if name == _LOGPROB and found.drift is not None:
        yield from _check_most("max_logprob_drift", gate, name, found.drift)
    if kind in ("float32", "float64"):
        yield from _check_most("max_nan", gate, name, found.broken / found.rows)
    if found.mean_cosine is not None and gate.min_cosine is not None:
        passed = found.mean_cosine >= gate.min_cosine
        yield Check(threshold="min_cosine", field=name, limit=gate.min_cosine, value=found.mean_cosine, passed=passed)


def _check_most(threshold: str, gate: Gate, field: str | None, value: float | None) -> Iterator[Check]:
    limit: float | None = getattr(gate, threshold)
    if limit is not None and value is not None:
        yield Check(threshold=threshold, field=field, limit=limit, value=value, passed=value <= limit)
