"""Progress between two commits."""

from __future__ import annotations

import pytest

from daskinfer.runtime.driver.computed_rows import Advance
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.testing.fixtures.plans import make_plan
from tests.support.factories import make_record


def test_rows_move_with_every_microbatch() -> None:
    advance = Advance()
    advance.begin((0, 3), rows=100, microbatches=4)
    advance.begin((0, 4), rows=50, microbatches=2)
    seen = [advance.rows]
    for place in ((0, 3), (0, 4), (0, 3), (0, 3), (0, 3)):
        advance.step(place)
        seen.append(advance.rows)
    assert seen == [0, 25, 50, 75, 100, 125]
    advance.step((0, 3))
    assert advance.rows == 125, "a microbatch that was computed twice counts once"
    advance.end((0, 3))
    assert advance.rows == 25
    advance.begin((0, 4), rows=50, microbatches=2)
    assert advance.rows == 0, "a partition that is read again begins anew"


def test_what_it_never_heard_of_is_nothing() -> None:
    advance = Advance()
    advance.step((0, 1))
    advance.end((0, 1))
    advance.begin((0, 2), rows=5, microbatches=0)
    assert advance.rows == 0


def test_a_generation_that_is_given_up_counts_no_more() -> None:
    advance = Advance()
    for generation in (0, 1):
        advance.begin((generation, 1), rows=10, microbatches=1)
        advance.step((generation, 1))
    advance.drop(0)
    assert advance.rows == 10
    advance.clear()
    assert advance.rows == 0


def test_busy_shares_move_between_two_commits() -> None:
    ledger = RunProgress(make_plan(replicas=(1, 2)), rows_total=30)
    assert ledger.busy(0) == (0, 0)
    ledger.add(make_record(0))
    assert ledger.busy(2.0) == (0.5, 0.25)
    ledger.advance.begin((0, 1), rows=10, microbatches=2)
    assert ledger.busy(3.0) == pytest.approx((1 / 3, 1 / 6)), "nothing came out for a second"
    ledger.advance.step((0, 1))
    assert ledger.busy(3.0) == (0.5, 0.25)
    ledger.advance.end((0, 1))
    ledger.add(make_record(1))
    assert ledger.busy(4.0) == (0.5, 0.25)
