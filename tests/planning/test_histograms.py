from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from daskinfer.planning.histograms import count_bins, draw_bars, measure_drift, measure_gap

VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40)
WHOLE = st.lists(st.integers(-200, 200), min_size=1, max_size=60)


def ks_statistic(one: Sequence[float], other: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its p-value, which nobody wants here
        return float(ks_2samp(one, other).statistic)


@given(WHOLE, WHOLE)
def test_the_gap_is_the_statistic_of_kolmogorov_and_smirnov(one: list[int], other: list[int]) -> None:
    # Every such number has a bin of its own, so nothing is lost.
    bins = count_bins(np.array(one, float), np.array(other, float))
    assert measure_gap(bins) == pytest.approx(ks_statistic(one, other))


@given(VALUES, VALUES)
def test_bins_lose_at_most_one_bin_of_the_gap(one: list[float], other: list[float]) -> None:
    bins = count_bins(np.array(one), np.array(other))
    assert sum(before for before, _ in bins.values()) == len(one)
    assert sum(after for _, after in bins.values()) == len(other)
    if one and other:
        exact = ks_statistic(one, other)
        most = max(max(before / len(one), after / len(other)) for before, after in bins.values())
        assert measure_gap(bins) <= exact + 1e-9 <= measure_gap(bins) + most + 2e-9
    else:
        assert measure_gap(bins) == float(bool(one or other))


@given(VALUES, st.sampled_from([1.0, -1.0, 3e-20, 1e20]))
def test_bins_are_in_the_order_of_the_numbers(values: list[float], scale: float) -> None:
    found = [next(iter(count_bins(np.array([value * scale]), np.zeros(0)))) for value in sorted(values)]
    assert found == sorted(found) if scale > 0 else found == sorted(found, reverse=True)


def test_bins_are_narrow_and_zeros_share_one() -> None:
    for value in (1e-30, 0.3, 1.0, 77.0, 1e30, -5.0):
        assert count_bins(np.array([value]), np.array([value * 1.02])).keys() != {
            next(iter(count_bins(np.array([value]), np.zeros(0))))
        }
    assert len(count_bins(np.array([0.0]), np.array([-0.0]))) == 1


def test_drift_is_the_population_stability_index() -> None:
    # With many rows the half row that is added to each count does not matter.
    before, after = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    wanted = float(((after - before) * np.log(after / before)).sum())
    counts = list(zip((before * 1e7).astype(int).tolist(), (after * 1e7).astype(int).tolist(), strict=True))
    assert measure_drift(counts) == pytest.approx(wanted, rel=1e-5)
    assert measure_drift([(100, 0), (0, 100)]) > 1
    assert measure_drift([(100, 200), (50, 100)]) < 1e-4
    assert measure_drift([(7, 7), (3, 3)]) == 0 == measure_drift([])


@given(VALUES, VALUES)
def test_bars_hold_every_value_once(one: list[float], other: list[float]) -> None:
    bins = count_bins(np.array(one), np.array(other))
    bars = draw_bars(bins)
    assert bool(bars) == (len(bins) > 1)
    if bars:
        assert sum(bar.rows.current for bar in bars) == len(one)
        assert sum(bar.rows.candidate for bar in bars) == len(other)
        assert all(left.high == right.low for left, right in pairwise(bars))


def test_bars_leave_the_tails_out() -> None:
    values = np.random.default_rng(0).normal(5, 1, 10_000)
    values[0] = 1e9
    bars = draw_bars(count_bins(values, values + 0.5))
    assert len(bars) == 24 and 1 < bars[0].low < 4 and 7 < bars[-1].high < 10
