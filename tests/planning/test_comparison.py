"""Parts add up to the whole, and what was planted is found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from daskinfer.planning import comparison
from daskinfer.planning.comparison import compare_parts, merge_parts
from daskinfer.planning.judgement import describe_field, judge
from daskinfer.spec.comparison import Check, ComparedOutput, GateReport, PartComparison
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.gate import Gate

KINDS = ("float32", "float64", "int64", "int32", "uint8", "bool", "string")
SIDE = ComparedOutput(job="job-1", checkpoint="tiny@v1", snapshot="sha256:1", output="out")


@dataclass(frozen=True)
class Part:
    rows: NDArray[np.int64]
    arrays: Mapping[str, NDArray[Any]]

    def take(self, begin: int, end: int) -> Part:
        chosen = (self.rows >= begin) & (self.rows < end)
        return Part(self.rows[chosen], {name: values[chosen] for name, values in self.arrays.items()})


def make_field(name: str, kind: str, *shape: int) -> OutputField:
    return OutputField.model_validate({"name": name, "kind": kind, "shape": shape})


@st.composite
def columns(draw: st.DrawFn, field: OutputField, rows: int, largest: int | None) -> NDArray[Any]:
    shape = (rows, *field.shape)
    if field.kind == "string":
        texts = st.sampled_from(["a", "b", "Zürich", ""]) | st.text(max_size=3)
        return draw(hnp.arrays(object, shape, elements=texts))
    bounds: dict[str, Any] = (
        {} if largest is None or field.kind in ("bool", "uint8") else {"min_value": -largest, "max_value": largest}
    )
    elements: st.SearchStrategy[Any] = hnp.from_dtype(np.dtype(field.kind), **bounds)
    if field.kind.startswith("float"):
        elements |= st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf])
    return draw(hnp.arrays(field.kind, shape, elements=elements))


@st.composite
def pairs(draw: st.DrawFn, largest: int | None = None) -> tuple[Part, Part, list[OutputField]]:
    shapes: list[tuple[int, ...]] = [(), (3,), (2, 2)]
    fields = [
        make_field(f"f{kind}", kind, *draw(st.sampled_from(shapes)))
        for kind in draw(st.sets(st.sampled_from(KINDS), min_size=1))
    ]
    sides = []
    for _ in range(2):
        rows = sorted(draw(st.sets(st.integers(0, 11))))
        arrays = {field.name: draw(columns(field, len(rows), largest)) for field in fields}
        sides.append(Part(np.array(rows, np.int64), arrays))
    if draw(st.booleans()):  # unlike random ones, many values are then the same
        common = np.isin(sides[1].rows, sides[0].rows)
        for name, values in sides[1].arrays.items():
            values[common] = sides[0].arrays[name][np.isin(sides[0].rows, sides[1].rows)]
    return sides[0], sides[1], fields


def split(one: Part, other: Part, fields: Sequence[OutputField], cuts: Sequence[int], order: int) -> PartComparison:
    ends = [0, *sorted(cuts), 12]
    parts = [compare_parts(one.take(begin, end), other.take(begin, end), fields, 0.01) for begin, end in pairwise(ends)]
    Random(order).shuffle(parts)
    return merge_parts(parts)


def assert_alike(one: Any, other: Any) -> None:
    """Equal, but for the last bits of sums of floats."""
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isfinite(one) and one == pytest.approx(other, rel=1e-9, abs=1e-6)
    else:
        assert one == other


@given(pairs(largest=2**20), st.lists(st.integers(0, 12), max_size=4), st.integers(0, 99))
def test_parts_add_up_to_the_whole_in_any_order(
    pair: tuple[Part, Part, list[OutputField]], cuts: list[int], order: int
) -> None:
    one, other, fields = pair
    whole = compare_parts(one, other, fields, 0.01)
    assert_alike(split(one, other, fields, cuts, order).model_dump(), whole.model_dump())
    assert PartComparison.model_validate_json(whole.model_dump_json()) == whole
    both = len(set(one.rows.tolist()) & set(other.rows.tolist()))
    assert (whole.rows, whole.current_only, whole.candidate_only) == (
        both,
        len(one.rows) - both,
        len(other.rows) - both,
    )


@given(pairs(largest=2**20))
def test_blocks_of_a_part_add_up_too(pair: tuple[Part, Part, list[OutputField]]) -> None:
    one, other, fields = pair
    whole = compare_parts(one, other, fields, 0.01).model_dump()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_AT_ONCE", 8)
        assert_alike(compare_parts(one, other, fields, 0.01).model_dump(), whole)


STRICTEST = Gate(
    tolerance=0.0, max_changed=0.0, max_label_changes=0.0, max_label_drift=0.0, max_length_drift=0.0,
    max_logprob_drift=0.0, max_nan=0.0, max_quarantined=0.0, min_cosine=1.0, min_rows=1,
)  # fmt: skip


@given(pairs())
def test_the_same_passes_the_strictest_gate(pair: tuple[Part, Part, list[OutputField]]) -> None:
    one, _, fields = pair
    same = Part(one.rows, {name: values.copy() for name, values in one.arrays.items()})
    report = judge(compare_parts(one, same, fields, 0.0), STRICTEST, SIDE, SIDE, "now")
    assert (report.verdict == "passed") == (len(one.rows) > 0)
    assert all(field.changed == 0 and field.broken == 0 and not field.furthest for field in report.fields)
    assert all(field.drift in (None, 0.0) and field.mean_cosine in (None, 1.0) for field in report.fields)
    assert GateReport.model_validate_json(report.model_dump_json()) == report


@given(pairs(), st.lists(st.integers(0, 12), max_size=3))
def test_any_parts_make_a_report_that_travels(pair: tuple[Part, Part, list[OutputField]], cuts: list[int]) -> None:
    report = judge(split(*pair, cuts, 0), Gate(tolerance=0.01), SIDE, SIDE, "now")
    assert GateReport.model_validate_json(report.model_dump_json()) == report


@given(pairs())
def test_figures_are_those_of_a_plain_loop(pair: tuple[Part, Part, list[OutputField]]) -> None:
    one, other, fields = pair
    found = compare_parts(one, other, fields, 0.01)
    for field, sums in zip(fields, found.fields, strict=True):
        before = dict(
            zip(
                one.rows.tolist(),
                one.arrays[field.name].reshape(len(one.rows), math.prod(field.shape)).tolist(),
                strict=True,
            )
        )
        after = dict(
            zip(
                other.rows.tolist(),
                other.arrays[field.name].reshape(len(other.rows), math.prod(field.shape)).tolist(),
                strict=True,
            )
        )
        common = sorted(set(before) & set(after))
        assert sums.equal == sum(all(map(is_same, before[row], after[row])) for row in common)
        if field.kind.startswith("float"):
            assert sums.close == sum(all(map(is_close, before[row], after[row])) for row in common)
            values = [value for row in common for value in after[row]]
            assert sums.nan.candidate == sum(map(math.isnan, values))
            assert sums.infinite.candidate == sum(map(math.isinf, values))
            assert sums.broken == sum(any(map(is_broken, before[row], after[row])) for row in common)
        else:
            assert sums.close == sums.equal
        if field.kind == "string":
            assert sums.total.candidate == sum(len(value) for row in common for value in after[row])


def is_same(one: Any, other: Any) -> bool:
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def is_close(one: float, other: float) -> bool:
    both = math.isfinite(one) and math.isfinite(other)
    return is_same(one, other) or (both and abs(other - one) <= 0.01 * max(1.0, abs(one)))


def is_broken(one: float, other: float) -> bool:
    return math.isfinite(one) and not math.isfinite(other)


def judge_pair(field: OutputField, before: NDArray[Any], after: NDArray[Any], **gate: Any) -> GateReport:
    """Judge a column of one version against another's, partition by partition."""
    limits = Gate.model_validate(gate)
    rows = np.arange(len(before))
    one, other = Part(rows, {field.name: before}), Part(rows, {field.name: after})
    cuts = range(0, len(rows), 250)
    parts = [compare_parts(one.take(n, n + 250), other.take(n, n + 250), [field], limits.tolerance) for n in cuts]
    return judge(merge_parts(parts), limits, SIDE, SIDE, "now")


def failed(report: GateReport) -> set[str]:
    assert (report.verdict == "passed") == all(check.passed for check in report.checks)
    return {check.threshold for check in report.checks if not check.passed}


def find(report: GateReport, threshold: str) -> Check:
    return next(check for check in report.checks if check.threshold == threshold)


RANDOM = np.random.default_rng(0)


def test_labels_that_drift_are_found() -> None:
    before = RANDOM.choice(["pos", "neg", "neutral"], 1000, p=[0.5, 0.4, 0.1])
    label = make_field("label", "string")
    few = before.copy()
    few[:30] = "neutral"
    assert failed(judge_pair(label, before, few)) == set()
    swapped = np.where(np.arange(1000) % 10 == 0, np.where(before == "pos", "neg", "pos"), before)
    report = judge_pair(label, before, swapped)  # every tenth label is another one, and as many come as before
    assert failed(report) == {"max_label_changes"}
    assert find(report, "max_label_changes").value == pytest.approx((before != swapped).mean())
    flood = np.where(np.arange(1000) % 2 == 0, "neutral", before)
    report = judge_pair(label, before, flood)
    assert failed(report) == {"max_label_changes", "max_label_drift"}
    (most, *_) = report.fields[0].labels
    assert most.label == "neutral"
    assert most.rows.current == (before == "neutral").sum() and most.rows.candidate == (flood == "neutral").sum()
    assert [found.row for found in report.fields[0].furthest] == np.flatnonzero(before != flood)[:5].tolist()


def test_texts_are_judged_by_their_length() -> None:
    before = np.array([f"text {number} " + "word " * 20 for number in range(1001)], object)
    text = make_field("text", "string")
    assert failed(judge_pair(text, before, before[::-1])) == set()
    cut = np.array([value[:60] for value in before], object)
    report = judge_pair(text, before, cut)
    assert failed(report) == {"max_length_drift"}
    assert report.fields[0].mean is not None and report.fields[0].mean.candidate == 60
    # A thousand different labels are no labels.
    assert judge_pair(make_field("label", "string"), before, before[::-1]).fields[0].drift is None


def test_lengths_in_tokens_that_drift_are_found() -> None:
    before = RANDOM.integers(10, 200, 1000)
    report = judge_pair(make_field("num_tokens", "int64"), before, before + 1)
    assert failed(report) == set()
    assert failed(judge_pair(make_field("num_tokens", "int64"), before, before * 2)) == {"max_length_drift"}
    assert failed(judge_pair(make_field("num_tokens", "int64"), before * 0, before)) == {"max_length_drift"}
    assert failed(judge_pair(make_field("other", "int64"), before, before * 2)) == set()
    assert failed(judge_pair(make_field("other", "int64"), before, before * 2, max_changed=0.5)) == {"max_changed"}


def test_log_probabilities_that_drift_are_found() -> None:
    before = -RANDOM.gamma(9.0, 12.0, 1000).astype(np.float32)
    logprob = make_field("logprob", "float32")
    assert failed(judge_pair(logprob, before, before + RANDOM.normal(0, 1, 1000).astype(np.float32))) == set()
    report = judge_pair(logprob, before, before * np.float32(1.3))
    assert failed(report) == {"max_logprob_drift"}
    bars = report.fields[0].bars
    assert sum(bar.rows.current for bar in bars) == sum(bar.rows.candidate for bar in bars) == 1000
    assert all(bar.low < bar.high for bar in bars)


def test_numbers_that_broke_are_found() -> None:
    before = RANDOM.normal(size=(1000, 4)).astype(np.float32)
    before[7] = np.nan  # as before, so nothing new
    for odd in (np.nan, np.inf):
        after = before.copy()
        after[500, 2] = odd
        report = judge_pair(make_field("embedding", "float32", 4), before, after)
        assert failed(report) == {"max_nan"}
        assert find(report, "max_nan").value == 1 / 1000
        assert report.fields[0].furthest[0].row == 500 and report.fields[0].furthest[0].difference is None
        assert report.fields[0].nan.current == 4 and report.fields[0].nan.candidate == 4 + int(np.isnan(odd))
    assert failed(judge_pair(make_field("embedding", "float32", 4), after, before)) == set()


def test_vectors_that_turn_are_found() -> None:
    before = RANDOM.normal(size=(1000, 16)).astype(np.float32)
    embedding = make_field("embedding", "float32", 16)
    assert failed(judge_pair(embedding, before, before * 3)) == set()  # the direction counts, not the length
    report = judge_pair(embedding, before, before + RANDOM.normal(0, 0.7, (1000, 16)).astype(np.float32))
    assert failed(report) == {"min_cosine"}
    wanted = 1 - np.array([cosine_distance(*pair) for pair in zip(before, before * -1, strict=True)]).mean()
    assert find(judge_pair(embedding, before, before * -1), "min_cosine").value == pytest.approx(wanted) == -1
    wide = make_field("embedding", "float64", 16)
    for scale in (1e-300, 1e300):  # no square of these is a float
        scaled = before.astype(np.float64) * scale
        assert find(judge_pair(wide, scaled, scaled * 0.5), "min_cosine").value == pytest.approx(1)


def cosine_distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    from scipy.spatial.distance import cosine

    return float(cosine(one, other))


def test_rows_that_only_the_candidate_refused_are_found() -> None:
    score = make_field("score", "float32")
    values = np.zeros(1000, np.float32)
    whole, short = Part(np.arange(1000), {"score": values}), Part(np.arange(2, 1000), {"score": values[2:]})
    report = judge(compare_parts(whole, short, [score], 1e-3), Gate(), SIDE, SIDE, "now")
    assert failed(report) == {"max_quarantined"} and find(report, "max_quarantined").value == 0.002
    report = judge(compare_parts(short, whole, [score], 1e-3), Gate(), SIDE, SIDE, "now")
    assert report.verdict == "passed" and report.candidate_only == 2


def test_few_rows_show_nothing() -> None:
    assert failed(judge_pair(make_field("score", "float32"), np.zeros(99), np.zeros(99))) == {"min_rows"}
    nothing = Part(np.arange(0), {"x": np.zeros((0, 3), np.float32)})
    report = judge(compare_parts(nothing, nothing, [make_field("x", "float32", 3)], 1e-3), Gate(), SIDE, SIDE, "now")
    assert failed(report) == {"min_rows"} and report.fields[0].mean_cosine is None


def test_thresholds_can_be_switched_off() -> None:
    gate = dict.fromkeys([name for name in Gate.model_fields if name not in ("tolerance", "min_rows")])
    report = judge_pair(make_field("label", "string"), np.full(200, "a"), np.full(200, "b"), **gate)
    assert [check.threshold for check in report.checks] == ["min_rows"] and report.verdict == "passed"


def test_parts_that_do_not_belong_together_are_refused() -> None:
    part = Part(np.arange(3), {"x": np.zeros(3), "y": np.zeros(3)})
    x, y = (compare_parts(part, part, [make_field(name, "float64")], 0.1) for name in "xy")
    with pytest.raises(ValueError, match="columns"):
        merge_parts([x, y])
    with pytest.raises(ValueError, match="tolerance"):
        merge_parts([x, compare_parts(part, part, [make_field("x", "float64")], 0.2)])
    with pytest.raises(ValueError, match="tolerance"):
        judge(x, Gate(tolerance=0.2), SIDE, SIDE, "now")


def test_a_report_that_was_edited_is_refused() -> None:
    text = judge_pair(make_field("score", "float32"), np.zeros(9), np.zeros(9)).model_dump_json()
    with pytest.raises(ValueError, match="changed after it was made"):
        GateReport.model_validate_json(text.replace('"verdict":"failed"', '"verdict":"passed"'))


def test_memory_does_not_grow_with_the_rows() -> None:
    label, score = make_field("label", "string"), make_field("logprob", "float32")
    sizes = []
    for parts in (10, 40):
        found = None
        for number in range(parts):
            random = np.random.default_rng(number)
            rows = np.arange(500) + 500 * number
            one, other = (
                Part(rows, {"label": random.choice(["a", "b"], 500), "logprob": random.normal(-50, 9, 500)})
                for _ in "ab"
            )
            part = compare_parts(one, other, [label, score], 0.0)
            found = part if found is None else merge_parts([found, part])
        assert found is not None and found.rows == 500 * parts
        assert describe_field(found.fields[0]).drift is not None
        sizes.append(len(found.model_dump_json()))
    assert sizes[1] < 1.4 * sizes[0]
