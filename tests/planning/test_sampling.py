from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from daskinfer.planning.sampling import choose_sample, is_sampled

FRACTIONS = st.floats(0, 1)


def test_the_share_is_right() -> None:
    for fraction in (0.01, 0.1, 0.5, 0.93):
        hits = sum(is_sampled("job", number, "canary", fraction) for number in range(20_000))
        assert binomtest(hits, 20_000, fraction).pvalue > 1e-4
    # Partitions that lie together are no more often in together than others.
    runs = [sum(is_sampled("job", first + step, "x", 0.5) for step in range(2)) for first in range(0, 20_000, 2)]
    assert chisquare([runs.count(n) for n in range(3)], [2_500, 5_000, 2_500]).pvalue > 1e-4


@given(st.text(), st.integers(0, 10**9), st.text(), FRACTIONS, FRACTIONS)
def test_a_smaller_sample_lies_within_a_larger_one(job: str, number: int, salt: str, one: float, other: float) -> None:
    small, large = sorted([one, other])
    assert is_sampled(job, number, salt, large) or not is_sampled(job, number, salt, small)
    assert is_sampled(job, number, salt, 1.0) and not is_sampled(job, number, salt, 0.0)


@given(st.integers(0, 40), FRACTIONS, FRACTIONS)
def test_a_jobs_sample_is_never_empty_and_nested(partitions: int, one: float, other: float) -> None:
    small, large = (choose_sample("job", partitions, "salt", fraction) for fraction in sorted([one, other]))
    assert small <= large <= set(range(partitions))
    assert bool(large) == (partitions > 0 and max(one, other) > 0)
    drawn = {number for number in range(partitions) if is_sampled("job", number, "salt", max(one, other))}
    assert drawn == large or (not drawn and len(large) <= 1)


def test_samples_of_other_jobs_and_salts_are_others() -> None:
    samples = [choose_sample(*names, fraction=0.5) for names in (("a", 200, "x"), ("b", 200, "x"), ("a", 200, "y"))]
    assert len(set(samples)) == 3
    # Names are told apart from salts.
    assert choose_sample("ab", 200, "c", 0.5) != choose_sample("a", 200, "bc", 0.5)


def test_every_process_gives_the_same_answer() -> None:
    # Written down: a resume by a later version must find the same partitions.
    assert sorted(choose_sample("embed-news-3f9a1c", 50, "canary", 0.1)) == SAMPLE
    script = "from daskinfer.planning.sampling import *; print(*sorted(choose_sample('embed-news-3f9a1c', 50, 'canary', 0.1)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [int(number) for number in done.stdout.split()] == SAMPLE


SAMPLE = [5, 42]


def test_the_hash_is_the_one_that_is_documented() -> None:
    for number in range(100):
        rank = int(hashlib.sha256(f'["embed-1","canary",{number}]'.encode()).hexdigest()[:16], 16)
        assert not is_sampled("embed-1", number, "canary", max(0, rank - 4096) / 2**64)
        assert is_sampled("embed-1", number, "canary", min(1.0, (rank + 4096) / 2**64))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        is_sampled("job", 0, "salt", fraction)
    with pytest.raises(ValueError, match="from 0 to 1"):
        choose_sample("job", 5, "salt", fraction)
