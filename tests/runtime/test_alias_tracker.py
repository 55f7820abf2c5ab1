from __future__ import annotations

import pytest
from pydantic import ValidationError

from daskinfer.runtime.protocol.keys import AliasHead
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.spec.job.generation import Generations, SnapshotPin, Step, as_ranges, fold
from daskinfer.spec.recipe.schema import Consistency


def follow(**rules: object) -> AliasTracker:
    return AliasTracker(SnapshotPin(snapshot="a", sequence=0), Consistency.model_validate(rules))


def look(tracker: AliasTracker, snapshot: str, sequence: int, now: float) -> None:
    tracker.ask(now)
    tracker.see(AliasHead(snapshot, sequence))


def take_up(tracker: AliasTracker) -> SnapshotPin:
    pin = tracker.propose()
    assert pin is not None
    tracker.advance()
    return pin


def test_a_strong_job_never_looks() -> None:
    tracker = follow()
    assert not tracker.wants_look(10**9)
    assert tracker.may_start(10**9)


def test_a_bounded_job_starts_nothing_on_what_it_does_not_know() -> None:
    tracker = follow(mode="bounded", refresh=10)
    assert not tracker.may_start(0)
    assert tracker.wants_look(0)
    tracker.ask(0)
    assert not tracker.wants_look(0)  # one question at a time
    tracker.see(AliasHead("a", 0))
    assert tracker.may_start(10)
    assert not tracker.may_start(10.1), "what was seen is as old as the question"
    assert tracker.wants_look(5)


def test_lag_is_counted_in_moves_of_the_alias() -> None:
    tracker = follow(mode="bounded", max_lag=1)
    look(tracker, "b", 1, now=0)
    assert tracker.lag == 1 and tracker.may_start(0)
    look(tracker, "c", 2, now=1)
    assert tracker.lag == 2 and not tracker.may_start(1)
    pin = take_up(tracker)
    assert (pin.generation, pin.snapshot, pin.sequence, pin.scope) == (1, "c", 2, 0)
    assert tracker.lag == 0 and tracker.may_start(1)


def test_an_alias_that_comes_back_leaves_no_lag() -> None:
    tracker = follow(mode="bounded")
    look(tracker, "b", 1, now=0)
    look(tracker, "a", 2, now=1)
    assert tracker.lag == 0 and tracker.may_start(1) and tracker.propose() is None
    look(tracker, "b", 3, now=2)
    assert tracker.lag == 1


def test_age_counts_from_when_the_alias_was_seen_to_leave() -> None:
    tracker = follow(mode="bounded", max_age=20, refresh=100)
    look(tracker, "a", 0, now=0)
    look(tracker, "b", 1, now=50)
    look(tracker, "c", 2, now=60)  # moving on does not start the count anew
    assert tracker.may_start(70)
    assert not tracker.may_start(70.1)
    look(tracker, "a", 3, now=80)
    look(tracker, "d", 4, now=90)
    assert tracker.may_start(110) and not tracker.may_start(110.1)


def test_a_refused_snapshot_is_not_proposed_again_until_the_alias_moves() -> None:
    tracker = follow(mode="eventual")
    look(tracker, "b", 1, now=0)
    assert tracker.propose() is not None
    assert tracker.propose() is None  # one at a time
    tracker.refuse()
    assert tracker.propose() is None
    look(tracker, "c", 2, now=1)
    pin = tracker.propose()
    assert pin is not None and (pin.generation, pin.snapshot) == (2, "c")


def test_an_upgrade_has_a_scope_of_its_own() -> None:
    tracker = follow(upgrade=True)
    look(tracker, "b", 1, now=0)
    pin = tracker.propose()
    assert pin is not None and pin.scope == pin.generation == 1


def test_only_the_first_failed_look_is_worth_a_note() -> None:
    tracker = follow(mode="eventual")
    for expected in (True, False, False):
        tracker.ask(0)
        assert tracker.miss() is expected
    look(tracker, "a", 0, now=1)
    tracker.ask(2)
    assert tracker.miss()


@pytest.mark.parametrize(
    "rules",
    [
        {"mode": "strong", "max_lag": 1},
        {"mode": "eventual", "max_age": 1},
        {"mode": "bounded", "upgrade": True},
        {"mode": "bounded", "converge": True},
        {"mode": "bounded", "max_lag": -1},
        {"mode": "eventual", "refresh": 0},
    ],
)
def test_rules_that_mean_nothing_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Consistency.model_validate(rules)


def generations(*steps: Step) -> Generations:
    return fold(SnapshotPin(snapshot="a"), steps)


def prepare(number: int, scope: int) -> Step:
    return Step(
        op="prepare", generation=number, pin=SnapshotPin(generation=number, snapshot=f"s{number}", scope=scope), epoch=1
    )


def adopt(number: int) -> Step:
    return Step(op="adopt", generation=number, epoch=1)


def test_ranges() -> None:
    assert as_ranges([]) == ()
    assert as_ranges([4]) == ((4, 5),)
    assert as_ranges([0, 1, 2, 5, 7, 8]) == ((0, 3), (5, 6), (7, 9))


def test_a_switch_gives_partitions_to_its_generation_for_good() -> None:
    switch = Step(op="switch", generation=1, owned=((3, 6),), epoch=1)
    before = generations(prepare(1, scope=1))
    assert before.current.generation == 0 and before.owner(4) == 0
    after = generations(prepare(1, scope=1), switch)
    assert after.current.generation == 1
    assert [after.owner(number) for number in (2, 3, 5, 6)] == [0, 1, 1, 0]
    again = generations(prepare(1, 1), switch, prepare(2, 2), Step(op="switch", generation=2, owned=((5, 9),), epoch=2))
    assert [again.owner(number) for number in (2, 3, 5, 8)] == [0, 1, 2, 2]
    assert again.scopes == (2, 1, 0)


def test_without_a_switch_the_newest_that_partitions_have_started_on_is_current() -> None:
    adopted = (prepare(1, 0), adopt(1), prepare(2, 0))
    assert generations(*adopted).current.generation == 1, "nothing has started on the newest"
    assert generations(*adopted, adopt(2)).current.generation == 2
    assert generations(*adopted, adopt(2), Step(op="drop", generation=2, epoch=1)).current.generation == 1
    assert generations(prepare(1, 1), Step(op="drop", generation=1, epoch=1)).current.generation == 0
