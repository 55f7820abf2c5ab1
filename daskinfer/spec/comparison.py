"""Two snapshots' outputs for the same rows, compared: sums of a part, figures of the whole, and the verdict on them."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import model_validator

from daskinfer.ids import digest_of
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.gate import Gate
from daskinfer.spec.section import Section

Number = TypeVar("Number", int, float)


class Both(Section, Generic[Number]):
    """A figure of the current version and of the candidate."""

    current: Number
    """As it is."""
    candidate: Number
    """As it would be."""


class RowDifference(Section):
    """How far a row is from what it was."""

    row: int
    """Number in the input."""
    difference: float | None
    """Largest difference among its numbers; None where one is no number, and for strings."""


class FieldSums(Section):
    """What one part, or several, add to the comparison of a column. The defaults are those of no rows."""

    field: OutputField
    """The column."""
    rows: int = 0
    """Rows that both have."""
    equal: int = 0
    """Rows that are the same; NaN is the same as NaN."""
    close: int = 0
    """Rows that are the same or, for floats, within the tolerance."""
    pairs: int = 0
    """Values that are finite in both."""
    difference: float = 0.0
    """Sum of their absolute differences."""
    largest_difference: float = 0.0
    """The largest of them."""
    cosine: float = 0.0
    """Sum of the cosines of vectors of floats."""
    least_cosine: float = 1.0
    """The least of them."""
    nan: Both[int] = Both[int](current=0, candidate=0)
    """Values that are NaN."""
    infinite: Both[int] = Both[int](current=0, candidate=0)
    """Values that are infinite."""
    broken: int = 0
    """Rows with NaN or infinity where the current version has a number."""
    counted: Both[int] = Both[int](current=0, candidate=0)
    """Finite values, or strings."""
    total: Both[float] = Both[float](current=0.0, candidate=0.0)
    """Sum of the finite values, or of the strings' lengths in characters."""
    bins: dict[int, tuple[int, int]] = {}
    """Of columns with one number a row: bin -> how many current and candidate values; see `planning.histograms`."""
    labels: dict[str, tuple[int, int]] | None = {}
    """Of labels: label -> how often current and candidate have it; None beyond a thousand of them, and of texts."""
    furthest: tuple[RowDifference, ...] = ()
    """The few rows that are furthest from what they were; those that are close left out."""


class PartComparison(Section):
    """What one partition, or several, add to a comparison."""

    tolerance: float
    """What counted as close; see `Gate.tolerance`."""
    rows: int
    """Rows that both have."""
    current_only: int
    """Rows that only the candidate refused."""
    candidate_only: int
    """Rows that only the current version refused."""
    fields: tuple[FieldSums, ...]
    """Every column that was compared."""


class LabelCount(Section):
    """How often a label comes."""

    label: str
    """The string."""
    rows: Both[int]
    """Rows that have it."""


class Bar(Section):
    """A slice of a distribution."""

    low: float
    """Where it begins."""
    high: float
    """Where it ends."""
    rows: Both[int]
    """Rows in it; the first and the last bar hold what lies beyond them, too."""


class FieldComparison(Section):
    """The figures of one column."""

    field: OutputField
    """The column."""
    rows: int
    """Rows that both have."""
    equal: int
    """Rows that are the same; NaN is the same as NaN."""
    close: int
    """Rows that are the same or, for floats, within the tolerance."""
    changed: float
    """Share of the rows that are not close."""
    broken: int
    """Rows with NaN or infinity where the current version has a number."""
    nan: Both[int]
    """Values that are NaN."""
    infinite: Both[int]
    """Values that are infinite."""
    largest_difference: float | None = None
    """Of numbers that are finite in both."""
    mean_difference: float | None = None
    """Mean of their absolute differences."""
    mean_cosine: float | None = None
    """Of vectors of floats."""
    least_cosine: float | None = None
    """Of vectors of floats."""
    mean: Both[float] | None = None
    """Of finite numbers; of texts, of their lengths in characters."""
    length_drift: float | None = None
    """Of texts and of `num_tokens`: change of the mean length, relative to the current one."""
    drift: float | None = None
    """Of one number a row: the Kolmogorov-Smirnov statistic. Of labels: the population stability index."""
    bars: tuple[Bar, ...] = ()
    """Of one number a row: the two distributions."""
    labels: tuple[LabelCount, ...] = ()
    """Labels whose number changed most."""
    furthest: tuple[RowDifference, ...] = ()
    """The few rows that are furthest from what they were."""


class Check(Section):
    """A threshold, and whether it was kept."""

    threshold: str
    """Key of the gate."""
    field: str | None = None
    """Column; None for the whole."""
    limit: float
    """What the gate says."""
    value: float
    """What was measured."""
    passed: bool
    """Whether the value is within the limit."""


class ComparedOutput(Section):
    """One side of a comparison."""

    job: str
    """Job id."""
    checkpoint: str
    """Checkpoint reference of its recipe."""
    snapshot: str
    """Snapshot digest that computed its rows."""
    output: str
    """URL of the output."""


class GateReport(Section):
    """A comparison, whole, with the verdict of a gate.

    Examples
    --------
    >>> from daskinfer.api import compare
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "before.jsonl", job="before"), finish_job("work", "after.jsonl", job="after")
    >>> report = compare("before.jsonl", "after.jsonl")
    >>> GateReport.model_validate_json(report.model_dump_json().replace('"failed"', '"passed"'))
    Traceback (most recent call last):
        ...
    pydantic_core._pydantic_core.ValidationError: 1 validation error for GateReport
      Value error, the digest does not belong to this report: it was changed after it was made ...
    """

    verdict: Literal["passed", "failed"]
    """`passed`: every check did."""
    current: ComparedOutput
    """What is there."""
    candidate: ComparedOutput
    """What would take its place."""
    gate: Gate
    """The thresholds."""
    rows: int
    """Rows that both have: those that were compared."""
    current_only: int
    """Rows that only the candidate refused."""
    candidate_only: int
    """Rows that only the current version refused."""
    checks: tuple[Check, ...]
    """Every threshold of the gate that has something to say."""
    fields: tuple[FieldComparison, ...]
    """The figures of every column."""
    created: str
    """ISO 8601, UTC."""
    digest: str
    """sha256 of all the above."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_edits(cls, facts: Any) -> Any:
        if isinstance(facts, dict) and facts.get("digest") != _digest(facts):
            raise ValueError("the digest does not belong to this report: it was changed after it was made")
        return facts

    @classmethod
    def make(cls, **facts: Any) -> GateReport:
        """Return the report of these facts, with its digest."""
        plain = cls.model_construct(**facts).model_dump(mode="json")
        return cls.model_validate({**plain, "digest": _digest(plain)})


def _digest(facts: dict[str, Any]) -> str:
    # Of what the file says, not of what is made of it: a later version may know more keys.
    return digest_of({name: value for name, value in facts.items() if name != "digest"})
