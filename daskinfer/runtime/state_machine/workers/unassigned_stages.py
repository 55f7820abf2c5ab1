"""A stage without any worker: how long the job waits for one, and what it says meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from daskinfer.errors import JobFailed
from daskinfer.runtime.protocol.actions import Action, Fail, IncidentRecord, StatusLine
from daskinfer.units import format_duration

SAY_SECONDS = 60.0
"""How often a job that waits says so."""


class UnassignedStagePolicy:
    """Waiting for workers.

    Parameters
    ----------
    missing
        Whether to `wait` without end, or to `stop`.
    seconds
        After how long it stops.

    Examples
    --------
    >>> policy = UnassignedStagePolicy("stop", seconds=60.0)
    >>> policy.look({1: 30.0}, lambda stage: f"stage {stage} has no worker", now=30.0)[0].detail
    'stage 1 has no worker; the job stops after 1 min 00 s'
    >>> policy.look({1: 60.0}, lambda stage: f"stage {stage} has no worker", now=60.0)[0].error.message
    'stage 1 has no worker; waited 1 min 00 s'
    """

    def __init__(self, missing: Literal["wait", "stop"], seconds: float) -> None:
        self._stops = missing == "stop"
        self._seconds = seconds
        self._said: dict[int, float] = {}

    def look(self, missing: Mapping[int, float], describe: Callable[[int], str], now: float) -> list[Action]:
        """Say that stages have no worker, or end the job for it.

        Parameters
        ----------
        missing
            Stages without a worker -> for how many seconds.
        describe
            Says what such a stage needs.
        now
            The time.
        """
        actions: list[Action] = []
        self._said = {stage: said for stage, said in self._said.items() if stage in missing}
        for stage, seconds in missing.items():
            if self._stops and seconds >= self._seconds:
                message = f"{describe(stage)}; waited {format_duration(seconds)}"
                hint = (
                    "Start a worker that can take it, then run the same command again; or set recovery.missing to wait."
                )
                return [*actions, Fail(JobFailed(message, hint))]
            if stage not in self._said:
                then = f"stops after {format_duration(self._seconds)}" if self._stops else "waits for one"
                actions.append(IncidentRecord("waiting", f"{describe(stage)}; the job {then}"))
                self._said[stage] = now
            elif now - self._said[stage] >= SAY_SECONDS:
                actions.append(StatusLine(f"waiting for {format_duration(seconds)}: {describe(stage)}"))
                self._said[stage] = now
        return actions
