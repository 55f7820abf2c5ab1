"""Turns, ratios, result files, tables and the list of peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.__main__ import read_options
from benchmarks.alternation import Spread, Turn, divide, order_round, summarise
from benchmarks.cases import CASES
from benchmarks.charts import draw_chart
from benchmarks.contest import compare, find_differences, find_reason
from benchmarks.environment import PINNED, why_not
from benchmarks.limits import time_loopback, time_write
from benchmarks.page import fill
from benchmarks.peers.catalog import PEERS
from benchmarks.results import read_results, write_result
from benchmarks.tables import list_rows
from benchmarks.work import Work

ROOT = Path(__file__).resolve().parents[2]
OURS = [Turn(10, 4), Turn(12, 6), Turn(20, 8)]
THEIRS = [Turn(20, 8), Turn(20, 6), Turn(20, 4)]


def make_result() -> dict[str, Any]:
    contestants = summarise({"daskinfer": OURS, "loop": THEIRS}, "daskinfer")
    for one in contestants.values():
        one |= {"what": "a way", "difference": 2e-7}
    return {
        "name": "embed",
        "what": "texts",
        "rows": 80,
        "repeats": 3,
        "contestants": contestants,
        "skipped": {},
        "limits": {},
    }


def test_rounds_go_there_and_back() -> None:
    assert [order_round("abc", number) for number in range(3)] == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_ratios_are_taken_round_by_round() -> None:
    assert divide(OURS, THEIRS) == {"running": Spread(1.0, 0.5, 2.0), "whole": Spread(0.6, 0.5, 1.0)}


def test_a_contestant_that_misses_a_round_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        divide(OURS, THEIRS[:2])


def test_the_latest_result_of_a_name_is_read(tmp_path: Path) -> None:
    for date in ("2026-01-02", "2026-02-01", "2025-12-31"):
        write_result(tmp_path / "results", "embed", {"machine": {"date": date}})
    write_result(tmp_path / "results", "load", {"machine": {"date": "2024-01-01"}})
    found = read_results(tmp_path / "results")
    assert {name: one["machine"]["date"] for name, one in found.items()} == {
        "embed": "2026-02-01",
        "load": "2024-01-01",
    }


def test_a_line_of_a_table_tells_medians_and_ranges() -> None:
    ours, theirs = list_rows(make_result())
    assert ours == ["daskinfer", "6.0", "6.0", "13", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)", "", "2e-07"]
    assert theirs[4:6] == ["1.00 (0.50 to 2.00)", "0.60 (0.50 to 1.00)"]


def test_the_share_of_the_limit_is_the_products_time_as_a_part_of_each() -> None:
    found = summarise({"daskinfer": OURS, "products": [Turn(9, 2), Turn(9, 3), Turn(9, 6)]}, "daskinfer")
    assert found["daskinfer"]["share_of_limit"] == {"median": 0.5, "least": 0.5, "most": 0.75}
    assert found["products"]["share_of_limit"]["median"] == 1.0


def test_raw_limits_are_seconds(tmp_path: Path) -> None:
    assert 0 < time_write(tmp_path / "raw", 1_000_000) < 30
    assert 0 < time_loopback(3_000_001) < 30


def test_a_difference_counts_as_a_part_of_large_values() -> None:
    expected = ([0, 2], np.array([0.5, -1000.0]))
    assert compare(np.array([0.5, 9.0, -1000.001]), expected) == pytest.approx(1e-6)
    assert compare(None, expected) is None


@pytest.mark.parametrize(("difference", "lines"), [(9e-6, 0), (2e-5, 1), (float("nan"), 1), (None, 0)])
def test_who_computes_something_else_is_named(difference: float | None, lines: int) -> None:
    result = make_result()
    result["contestants"]["loop"]["difference"] = difference
    assert len(find_differences(result)) == lines


def test_the_reason_of_a_failure_is_the_line_that_names_it() -> None:
    text = "Traceback (most recent call last):\n  File ...\nValueError: no such column\nSee the documentation.\n"
    assert find_reason(text) == "ValueError: no such column"
    assert find_reason("") == "it said nothing"


def test_a_peer_that_cannot_run_here_is_told_with_the_reason() -> None:
    spark = PEERS["spark"]
    assert why_not(spark, "embed", {}) == "pyspark is not installed in .peers"
    assert why_not(PEERS["sentence-transformers"], "classify", {"sentence-transformers": "6"}) is not None
    assert why_not(PEERS["loop"], "score", {}) is None


def test_cases_name_peers_that_there_are_and_that_know_the_task() -> None:
    for case in CASES.values():
        assert [name for name in case.peers if case.task not in PEERS[name].tasks] == []


def test_what_peers_are_made_of_is_pinned() -> None:
    lines = [line for line in PINNED.read_text().splitlines() if line and not line.startswith("#")]
    names = {line.partition("==")[0].partition("[")[0] for line in lines}
    assert {package for peer in PEERS.values() for package in peer.packages} <= names


def test_running_is_from_the_first_that_is_ready_to_the_end(tmp_path: Path) -> None:
    work = Work("embed", "", "", str(tmp_path), 2, 1, 1, 1)
    assert Work.load(work.save(tmp_path / "work.json")) == work
    for mark in ("ready.1000000000", "ready.5000000000", "done.9000000000"):
        (tmp_path / f"mark-{mark}").touch()
    assert work.read_running() == 8.0
    work.clear_marks()
    work.mark_ready()
    work.mark_done()
    assert 0 <= work.read_running() < 60


def test_each_name_has_options_of_its_own() -> None:
    assert read_options(["embed", "--rows", "5"]).rows == 5
    assert read_options(["overhead", "--partition", "7"]).partition == 7


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    kept = read_results(ROOT / "benchmarks/results")
    assert fill(page, {name: one for name, one in kept.items() if name in CASES}) == page


def test_a_result_on_the_page_has_its_machine_and_a_line_for_everybody() -> None:
    machine = {"date": "2026-01-02", "processor": "a CPU", "cores": 2, "load_before": 0.5}
    result = make_result() | {"machine": machine | {"versions": {"torch": "2", "daskinfer": "1"}}}
    result["skipped"] = {"spark": "there is no java here"}
    before, after = "Words.\n<!-- results: python -m benchmarks page -->\n", "<!-- end of results -->\nMore.\n"
    page = fill(before + "old\n" + after, {"embed": result})
    assert page.startswith(before) and page.endswith(after) and "old" not in page
    assert "2026-01-02, 2 cores of a CPU" in page and "load when it began: 0.5" in page
    assert "| loop | 14.0 |" in page and "Not measured here: spark (there is no java here)." in page


def test_a_chart_is_an_image_with_a_bar_for_everybody() -> None:
    chart = ElementTree.fromstring(draw_chart(make_result()))
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"daskinfer", "loop"} <= set(texts)
