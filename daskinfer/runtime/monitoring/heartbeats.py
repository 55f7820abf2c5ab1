"""From what the scheduler knows of the workers to events, as plain state."""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.runtime.cluster.scheduler_state import ClusterSnapshot, WorkerSnapshot
from daskinfer.runtime.protocol.events import Event, MemoryPressure, WorkerFrozen, WorkerPaused, WorkerResumed

LOOK_SECONDS = 1.0


PRESSURE = 0.6
"""Share of its memory limit above which a worker is told of."""


# A look that comes late counts for no more than this: it says that the scheduler or the driver was busy, and then
# heartbeats may be waiting to be heard.
_LONGEST_STEP = 2 * LOOK_SECONDS


_HEARTBEATS = 5


@dataclass(slots=True)
class _Known:
    last_seen: float
    silent: float = 0.0
    told: int = 0
    paused: bool = False


class HeartbeatMonitor:
    """From looks to events, as plain state.

    Parameters
    ----------
    frozen
        Seconds of silence after which a worker is told of, and again after each so many more.

    Examples
    --------
    >>> monitor = HeartbeatMonitor(frozen=15)
    >>> silent = WorkerSnapshot("tcp://a:1", last_seen=0.0, paused=False, used=0, limit=0)
    >>> looks = [ClusterSnapshot(at=float(second), interval=0.5, sightings=[silent]) for second in range(20)]
    >>> [event for look in looks for event in monitor.take(look)]
    [WorkerFrozen(worker='tcp://a:1', silent=15.0)]
    """

    def __init__(self, frozen: float) -> None:
        self._frozen = frozen
        self._known: dict[str, _Known] = {}
        self._at: float | None = None

    def take(self, look: ClusterSnapshot) -> list[Event]:
        """Return what a look says that is worth telling."""
        step = 0.0 if self._at is None else min(look.at - self._at, _LONGEST_STEP)
        self._at = look.at
        limit = max(self._frozen, _HEARTBEATS * look.interval)
        here = {sighting.worker for sighting in look.sightings}
        self._known = {worker: known for worker, known in self._known.items() if worker in here}
        events: list[Event] = []
        for sighting in look.sightings:
            known = self._known.setdefault(sighting.worker, _Known(sighting.last_seen))
            if sighting.last_seen != known.last_seen:
                known.last_seen, known.silent, known.told = sighting.last_seen, 0.0, 0
            else:
                known.silent += step
            if known.silent >= limit * (known.told + 1):
                known.told += 1
                events.append(WorkerFrozen(sighting.worker, look.at - sighting.last_seen))
            events += self._weigh(known, sighting)
        return events

    def silence(self, worker: str, since_look: float) -> float | None:
        """Return for how long nothing was heard of a worker, `since_look` seconds after the last look."""
        known = self._known.get(worker)
        return None if known is None or self._at is None else self._at - known.last_seen + since_look

    def _weigh(self, known: _Known, sighting: WorkerSnapshot) -> list[Event]:
        events: list[Event] = []
        if sighting.paused and not known.paused:
            events.append(WorkerPaused(sighting.worker, sighting.used, sighting.limit))
        elif known.paused and not sighting.paused:
            events.append(WorkerResumed(sighting.worker))
        known.paused = sighting.paused
        if sighting.paused or 0 < sighting.limit * PRESSURE < sighting.used:
            events.append(MemoryPressure(sighting.worker, sighting.used, sighting.limit, sighting.paused))
        return events
