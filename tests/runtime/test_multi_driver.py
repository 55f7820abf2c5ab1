"""Members that share a job, in every order that Hypothesis thinks of: nothing is lost, done twice, or waited for for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from daskinfer.planning import blocks
from daskinfer.storage.objects.filesystem import delete
from daskinfer.testing.stress.campaigns import campaign_size
from tests.runtime.joinworld import TURNS, JoinWorld, Violation
from tests.support.chooser import Chooser

pytestmark = pytest.mark.late


@pytest.fixture(autouse=True)
def cut_so_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TURNS", TURNS)


def make_machine(bug: str = "") -> type[RuleBasedStateMachine]:
    class JoinMachine(RuleBasedStateMachine):
        world: JoinWorld

        @initialize(data=st.data())
        def begin(self, data: st.DataObject) -> None:
            self.world = JoinWorld(Chooser(data), bug)
            self.world.start_member()

        @precondition(lambda self: len(self.world.awake) < 3)
        @rule()
        def start(self) -> None:
            self.world.start_member()

        @precondition(lambda self: self.world.awake)
        @rule(data=st.data(), steps=st.integers(1, 12))
        def step(self, data: st.DataObject, steps: int) -> None:
            life = data.draw(st.sampled_from(self.world.awake), label="member")
            for _ in range(steps):
                if life.todo and not life.ended:
                    life.step()

        @precondition(lambda self: self.world.awake)
        @rule(data=st.data(), how=st.sampled_from(["kill", "leave", "pause", "pause"]))
        def stop(self, data: st.DataObject, how: str) -> None:
            life = data.draw(st.sampled_from(self.world.awake), label="member")
            if how == "pause":
                life.is_paused = True
            else:
                getattr(self.world, how)(life)

        @precondition(lambda self: any(life.is_paused for life in self.world.lives))
        @rule()
        def wake(self) -> None:
            next(life for life in self.world.lives if life.is_paused).is_paused = False

        @precondition(lambda self: self.world.lives and not self.world.awake)
        @rule()
        def run_alone(self) -> None:
            self.world.take_alone()

        @precondition(lambda self: self.world.zombies)
        @rule()
        def wake_zombie(self) -> None:
            self.world.wake_zombie()

        @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 20.0]))
        def wait(self, seconds: float) -> None:
            self.world.pass_time(seconds)

        def teardown(self) -> None:
            if hasattr(self, "world"):
                if not (self.world.violated or self.world.chooser.is_cut_off):
                    self.world.finish()
                delete(self.world.url, recursive=True)

    return JoinMachine


def play(bug: str, examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        make_machine(bug),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_every_partition_is_committed_once_whoever_dies() -> None:
    play("", campaign_size(100, 3000))


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("no-fence", "a fenced member writes"),
        ("count-twice", "a member has counted"),
        ("nobody-dies", "a member does not end"),
    ],
)
def test_a_planted_mistake_is_found(bug: str, found: str) -> None:
    with pytest.raises((Violation, ExceptionGroup)) as caught:
        play(bug, 2000, database=None, derandomize=True, phases=[Phase.generate])
    errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert any(str(error).startswith(found) for error in errors), errors
