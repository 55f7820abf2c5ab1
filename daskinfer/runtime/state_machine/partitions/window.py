"""How many microbatches may be in flight: more while the busiest stage idles, fewer while memory is short."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.runtime.protocol.actions import Action
from daskinfer.runtime.protocol.events import Committed, MemoryPressure, MicrobatchDone, Prepared
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.spec.job.commit import StageTrail
from daskinfer.spec.outline import largest_bundle
from daskinfer.spec.plan import Plan

_LOOK_SECONDS = 5.0
"""Busy shares come from commits, so they are measured over at least this long."""
_IDLE = 0.1
"""A pipeline is fast enough when its busiest stage idles no more than this."""
_GROWTH = 1.25
_SHRINK = 0.5
_WORTH = 1.05
"""A larger window that makes the busiest stage no busier than this is given up again: something else is slow."""
_REST_SECONDS = 60.0
"""Seconds for which the window is not made larger after an attempt that was given up."""
_HOLD_SECONDS = 5.0
"""How long a window that has shrunk shows its effect before it changes again."""
_FADE = 0.9
_COVERED_SECONDS = 1.0
"""A window holds at least what is finished in these seconds: the more microbatches share a message between driver,
scheduler and workers, the less each of them costs. The death of a worker costs no more than that."""
_MOST_COVERED = 64
"""Microbatches that a window holds at most for that reason: beyond them little is left to share, and when their worker
dies, each of them is a suspect."""


class WindowController:
    """The window of a job, as plain state; a plan without bytes to grow to fixes it.

    Parameters
    ----------
    plan
        Its window to begin with, the bytes that it may grow to, and the workers of every stage.
    partitions
        What the window is set for.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> plan = make_plan(window=4).model_copy(update={"window_bytes": 1_000_000})
    >>> controller = WindowController(plan, PartitionTracker(4, iter([]), 0))
    >>> controller.weigh(nbytes=500_000, microbatches=1)
    >>> controller.window, controller.most
    (4, 4)
    """

    def __init__(self, plan: Plan, partitions: PartitionTracker) -> None:
        self.window = plan.window
        self._partitions = partitions
        self._replicas = plan.replicas
        # Below it some stage has nothing to do while others work, and a job with little memory must still go on.
        self._least = min(plan.window, 2 * len(plan.replicas))
        self._budget = plan.window_bytes
        self._crossing = max((largest_bundle(edge, *plan.largest) for edge in plan.edges), default=0)
        self._encoded = 0.0
        self._seconds = [0.0] * len(self._replicas)
        self._since: float | None = None
        self._full = True
        self._pressed: float | None = None
        self._finished = 0
        self._counted = float("-inf")
        self._rests_until = float("-inf")
        self._before: tuple[int, float] | None = None

    @property
    def most(self) -> int:
        """Microbatches that the budget allows, as large as those of late."""
        return max(self._least, int(self._budget / max(1.0, self._crossing + self._encoded)))

    def on_prepared(self, event: Prepared, now: float) -> list[Action]:
        """Take in how large the microbatches of a partition are."""
        if self._budget:
            self.weigh(event.nbytes, event.microbatches)
        return self._set()

    def on_pressure(self, event: MemoryPressure, now: float) -> list[Action]:
        """Take in that a worker's memory is short."""
        if self._budget:
            self.press(now)
        return self._set()

    def on_computed(self, event: MicrobatchDone, now: float) -> list[Action]:
        """Take in that a microbatch is finished."""
        if self._budget:
            self.count(now)
        return self._set()

    def on_committed(self, event: Committed, now: float) -> list[Action]:
        """Take in what a partition took of every stage."""
        if self._budget:
            self.look(event.record.trail, self._partitions.in_flight >= self.window, now)
        return self._set()

    def _set(self) -> list[Action]:
        self._partitions.resize(self.window)
        return []

    def weigh(self, nbytes: int, microbatches: int) -> None:
        """Take in how large the microbatches of a partition are before the first stage."""
        if microbatches:
            self._encoded = max(nbytes / microbatches, self._encoded * _FADE)
            self.window = min(self.window, self.most)

    def press(self, now: float) -> None:
        """Take in that a worker's memory is short."""
        if self._pressed is None or now >= self._pressed + _HOLD_SECONDS:
            self._pressed = now
            self.window = max(self._least, int(self.window * _SHRINK))
            self._rests_until = now + _REST_SECONDS
            self._before = self._since = None

    def count(self, now: float) -> None:
        """Take in that a microbatch is finished."""
        self._finished += 1
        elapsed = now - self._counted
        if elapsed < _COVERED_SECONDS:
            return
        covered = min(int(self._finished * _COVERED_SECONDS / elapsed), _MOST_COVERED, self.most)
        rests = self._pressed is not None and now < self._pressed + _REST_SECONDS
        if covered > self.window and not rests:
            self.window, self._before = covered, None
        self._finished, self._counted = 0, now

    def look(self, trail: Sequence[StageTrail], is_full: bool, now: float) -> None:
        """Take in what a partition took of every stage.

        Parameters
        ----------
        trail
            Its commit record's.
        is_full
            Whether the window is what keeps further microbatches from starting.
        now
            Seconds, by the driver's clock.
        """
        if self._since is None:
            self._begin(now)
            return
        for part in trail:
            self._seconds[part.stage] += part.compute + part.receive + part.send
        self._full = self._full and is_full
        elapsed = now - self._since
        if elapsed < _LOOK_SECONDS:
            return
        busiest = max(seconds / count for seconds, count in zip(self._seconds, self._replicas, strict=True)) / elapsed
        if self._before is not None and busiest < self._before[1] * _WORTH:
            self.window, self._rests_until = min(self.window, self._before[0]), now + _REST_SECONDS
        self._before = None
        if busiest < 1 - _IDLE and self._full and now >= self._rests_until and self.window < self.most:
            self._before = (self.window, busiest)
            self.window = min(self.most, max(self.window + 1, int(self.window * _GROWTH)))
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since = now
        self._seconds = [0.0] * len(self._replicas)
        self._full = True
