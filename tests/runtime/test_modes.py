"""What each consistency mode promises, whatever happens: a state machine over the driver's real logic."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from daskinfer.spec.recipe.schema import Consistency
from daskinfer.testing.stress.campaigns import campaign_size
from tests.runtime.modesworld import ModesWorld, Violation
from tests.support.chooser import Chooser

STRONG = Consistency()
UPGRADE = Consistency(upgrade=True, refresh=1)
BOUNDED = Consistency(mode="bounded", max_lag=0, refresh=1)
LAGGING = Consistency(mode="bounded", max_lag=2, refresh=1)
EVENTUAL = Consistency(mode="eventual", refresh=1)
CONVERGE = Consistency(mode="eventual", converge=True, refresh=1)
ALL = {
    "strong": STRONG,
    "upgrade": UPGRADE,
    "bounded": BOUNDED,
    "lagging": LAGGING,
    "eventual": EVENTUAL,
    "converge": CONVERGE,
}


def make_machine(rules: Consistency, bug: str = "") -> type[RuleBasedStateMachine]:
    """Return a machine that plays jobs in one mode, with a planted mistake if wanted."""

    class Modes(RuleBasedStateMachine):
        world: ModesWorld

        @initialize(data=st.data())
        def begin(self, data: st.DataObject) -> None:
            self.world = ModesWorld(rules, Chooser(data), bug)
            self.world.start_driver()

        @property
        def is_open(self) -> bool:
            return self.world.manifest is None and self.world.error is None

        @precondition(lambda self: self.is_open)
        @rule(times=st.integers(1, 8))
        def work(self, times: int) -> None:
            for _ in range(times):
                self.world.step()

        @rule()
        def move_alias(self) -> None:
            self.world.move_alias()

        @precondition(lambda self: self.is_open)
        @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 3600.0]))
        def pass_time(self, seconds: float) -> None:
            self.world.pass_time(seconds)

        @precondition(lambda self: self.is_open)
        @rule()
        def driver_dies(self) -> None:
            self.world.kill_driver()

        @precondition(lambda self: self.is_open)
        @rule()
        def driver_starts(self) -> None:
            self.world.start_driver()

        @precondition(lambda self: self.is_open)
        @rule()
        def worker_dies(self) -> None:
            self.world.lose_worker()

        @rule()
        def zombie_wakes(self) -> None:
            self.world.wake_zombie()

        def teardown(self) -> None:
            if not hasattr(self, "world") or self.world.violated or self.world.chooser.is_cut_off:
                return
            self.world.finish()
            assert self.world.error is None or rules.mode == "bounded", self.world.error
            if self.world.manifest is not None:
                self.world.check_seal()

    return Modes


def play(machine: type[RuleBasedStateMachine], examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


@pytest.mark.parametrize("mode", list(ALL))
def test_every_mode_keeps_its_promise(mode: str) -> None:
    play(make_machine(ALL[mode]), campaign_size(100, 3000))


@pytest.mark.parametrize(
    ("rules", "bug", "invariant"),
    [
        (EVENTUAL, "mixed-microbatches", "I0"),
        (STRONG, "resolve-on-resume", "I1"),
        (BOUNDED, "no-staleness-check", "I2"),
        (EVENTUAL, "last-writer-wins", "I4|I6"),
        (UPGRADE, "no-fence", "I4|I5|I6"),
    ],
)
def test_a_planted_mistake_is_found(rules: Consistency, bug: str, invariant: str) -> None:
    with pytest.raises((Violation, ExceptionGroup)) as found:
        play(make_machine(rules, bug), 2000, database=None, derandomize=True, phases=[Phase.generate])
    errors = found.value.exceptions if isinstance(found.value, ExceptionGroup) else [found.value]
    assert any(str(error).startswith(tuple(invariant.split("|"))) for error in errors), errors
