from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from daskinfer.planning.comparison import compare_parts
from daskinfer.planning.judgement import judge
from daskinfer.reports.gate import draw_distribution, draw_labels, render_gate
from daskinfer.spec.comparison import ComparedOutput, GateReport
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.gate import Gate
from daskinfer.spec.rows import Partition
from daskinfer.storage.outputs.sink import OutputPart
from tests.support.htmlpage import Page

EVIL = "</title></style><script>alert(1)</script>\"'&"
FIELDS = (
    OutputField(name="label", kind="string"),
    OutputField(name="logprob", kind="float32"),
    OutputField(name="embedding", kind="float32", shape=(4,)),
)


def make_part(shift: float, label: str, rows: int) -> OutputPart:
    random = np.random.default_rng(0)
    return OutputPart(
        Partition(number=0, first_row=0, rows=400, segments=()),
        np.arange(rows, dtype=np.int32),
        {
            "label": np.array(["common" if row % 4 else label for row in range(rows)], object),
            "logprob": (random.normal(-50, 5, 400)[:rows] + shift).astype(np.float32),
            "embedding": random.normal(size=(400, 4))[:rows].astype(np.float32),
        },
        pa.table({}),
        (),
    )


def make_report(shift: float = 0.0, label: str = "rare", rows: int = 400) -> GateReport:
    current, candidate = make_part(0.0, "rare", 400), make_part(shift, label, rows)
    if shift:
        candidate.arrays["embedding"][7] = np.nan
    sides = [
        ComparedOutput(job=f"embed-{name}", checkpoint=f"tiny@{name}", snapshot=f"sha256:{name}", output=f"out/{name}")
        for name in ("v1", "v2")
    ]
    return judge(compare_parts(current, candidate, FIELDS, 1e-3), Gate(), sides[0], sides[1], "2026-11-21T03:40:00")


def test_a_failure_is_told_with_its_figures() -> None:
    page = Page(render_gate(make_report(shift=10.0, label="other", rows=398)))
    assert "failed tiny@v2 against tiny@v1" in page.text
    failing = "max_quarantined, max_label_changes, max_label_drift, max_logprob_drift, max_nan."
    assert f"5 of 8 checks failed: {failing}" in page.text
    assert "398 rows compared 2 that only the candidate refused" in page.text
    assert "0 → 4 NaN" in page.text and "Furthest rows: 7 Current" in page.text
    assert "100 → 0" in page.text and "0 → 100" in page.text
    assert sum(dict(attrs).get("class") == "failed" for tag, attrs in page.tags if tag == "tr") == 5


def test_a_pass_says_so() -> None:
    report = make_report()
    page = Page(render_gate(report))
    assert "passed tiny@v2 against tiny@v1 All 8 checks passed." in page.text
    assert "Furthest" not in page.text and "NaN 0" not in page.text
    assert report.digest in page.text


def test_the_page_needs_nothing_else_and_escapes() -> None:
    text = render_gate(make_report(shift=1.0, label=EVIL))
    page = Page(text)
    assert "<script" not in text and "alert(1)" in page.text
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "img", "iframe", "object"}]
    assert "url(" not in text and not [name for _, attrs in page.tags for name in attrs if name in {"src", "href"}]


def test_bars_are_in_proportion() -> None:
    label, logprob, embedding = make_report(shift=3.0).fields
    pairs = draw_distribution(logprob)
    assert sum(pair.rows.current for pair in pairs) == sum(pair.rows.candidate for pair in pairs) == 400
    assert max(max(pair.current, pair.candidate) for pair in pairs) == 100
    share = pairs[10].current / pairs[10].rows.current
    assert all(pair.current == pytest.approx(share * pair.rows.current) for pair in pairs)
    assert [(pair.name, pair.current) for pair in draw_labels(label)] == [
        ("common", 100),
        ("rare", pytest.approx(100 / 3)),
    ]
    assert draw_distribution(embedding) == draw_labels(embedding) == []
