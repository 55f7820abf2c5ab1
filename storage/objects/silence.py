"""Whether a record still changes: how a process is told to live without comparing the clocks of two machines."""

from __future__ import annotations


class SilenceTimer:
    """Counts for how long records have not changed, on one clock of this process. Pure: whoever reads also tells the time.

    Examples
    --------
    >>> timer = SilenceTimer()
    >>> timer.observe("lease", 7, asked=10.0, answered=10.5) is None
    True
    >>> timer.observe("lease", 7, asked=15.0, answered=15.5)
    4.5
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}

    def observe(self, name: str, value: object, asked: float, answered: float) -> float | None:
        """Return for how many seconds at least a record has had this value; None if it is new, or has changed.

        Parameters
        ----------
        name
            The record.
        value
            What was read.
        asked, answered
            When the reading began and ended: silence is counted too short rather than too long.
        """
        before = self._seen.get(name)
        if before is None or before[0] != value:
            self._seen[name] = (value, answered)
            return None
        return asked - before[1]
