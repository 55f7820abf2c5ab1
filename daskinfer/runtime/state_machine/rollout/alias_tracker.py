"""Which snapshot a partition that starts now is computed on: the part of the driver's logic that follows an alias.

An attempt is pinned when it starts and keeps its pin to its commit; what changes while a job runs is the pin of attempts
to come. Nothing here compares the clocks of two machines: ages are counted from when this driver saw the alias move.
"""

from __future__ import annotations

from daskinfer.runtime.protocol.keys import AliasHead
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.recipe.schema import Consistency


class AliasTracker:
    """The current pin, the one that is being loaded to follow it, and what is known of the alias.

    Parameters
    ----------
    current
        What partitions start on.
    rules
        The recipe's consistency.
    generations
        How many generations the job has had.

    Examples
    --------
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), Consistency(mode="eventual", refresh=10.0))
    >>> tracker.wants_look(now=0.0)
    True
    >>> tracker.ask(now=0.0)
    >>> tracker.see(AliasHead("sha256:2", sequence=1)), tracker.wants_look(now=4.0), tracker.wants_look(now=5.0)
    (True, False, True)
    """

    def __init__(self, current: SnapshotPin, rules: Consistency, generations: int = 1) -> None:
        self.current = current
        self.candidate: SnapshotPin | None = None
        self.head: AliasHead | None = None
        self._rules = rules
        self._generations = generations
        self._at: int | None = current.sequence
        self._seen_at: float | None = None
        self._asked_at: float | None = None
        self._left_at: dict[str, float] = {}
        self._refused: str | None = None
        self._is_readable = True

    def wants_look(self, now: float) -> bool:
        """Whether it is time to look at the alias, so that what is known of it never grows too old."""
        if not self._rules.follows or self._asked_at is not None:
            return False
        return self._seen_at is None or now - self._seen_at >= self._rules.refresh / 2

    def ask(self, now: float) -> None:
        """Note that the alias is being looked at."""
        self._asked_at = now

    @property
    def is_asking(self) -> bool:
        """Whether a look at the alias is under way."""
        return self._asked_at is not None

    def knows_since(self, moment: float) -> bool:
        """Whether the alias was looked at since a moment."""
        return self._seen_at is not None and self._seen_at >= moment

    def miss(self) -> bool:
        """Note that it could not be read; say whether it could be read the time before."""
        self._asked_at = None
        was_readable, self._is_readable = self._is_readable, False
        return was_readable

    def see(self, head: AliasHead) -> bool:
        """Take in where the alias pointed; what is seen is as old as the question. Say whether it was not known before."""
        asked_at, self._asked_at = self._asked_at, None
        assert asked_at is not None
        self._is_readable = True
        before = self.current.snapshot if self.head is None else self.head.snapshot
        is_new = before != head.snapshot
        if is_new:
            self._left_at.setdefault(before, asked_at)
            self._refused = None
        self._left_at.pop(head.snapshot, None)
        self._seen_at, self.head = asked_at, head
        if head.snapshot == self.current.snapshot:
            self._at = head.sequence
        return is_new

    def propose(self) -> SnapshotPin | None:
        """Return the pin to load next, if the alias points to what is neither current nor refused."""
        if self.candidate is not None or self.head is None or self.head.snapshot == self._refused:
            return None
        if self.head.snapshot == self.current.snapshot:
            return None
        return self.take_up(self.head, switches=self._rules.upgrade)

    def take_up(self, head: AliasHead, switches: bool) -> SnapshotPin:
        """Make a head the candidate, in a scope of its own if it is to take over partitions by a switch."""
        number = self._generations
        self._generations += 1
        scope = number if switches else self.current.scope
        self.candidate = SnapshotPin(
            generation=number, snapshot=head.snapshot, sequence=head.sequence, version=head.version, scope=scope
        )
        return self.candidate

    def choose(self, pin: SnapshotPin) -> None:
        """Make a pin the candidate that was decided on already."""
        self.candidate = pin

    def advance(self) -> SnapshotPin:
        """Let partitions start on the candidate from now on; return what they started on before."""
        assert self.candidate is not None
        before, self.current, self.candidate = self.current, self.candidate, None
        self._at = self.current.sequence
        if self.head is not None and self.head.snapshot == self.current.snapshot:
            self._at = self.head.sequence
        return before

    def refuse(self) -> None:
        """Give the candidate up, until the alias moves again."""
        assert self.candidate is not None
        self._refused, self.candidate = self.candidate.snapshot, None

    @property
    def lag(self) -> int:
        """Moves of the alias, as last seen, that the current pin is behind."""
        if self.head is None or self.head.snapshot == self.current.snapshot or self._at is None:
            return 0
        return max(0, self.head.sequence - self._at)

    def may_start(self, now: float) -> bool:
        """Whether a partition may start on the current pin."""
        if self._rules.mode != "bounded":
            return True
        if self._seen_at is None or now - self._seen_at > self._rules.refresh:
            return False
        if self._rules.lag is not None and self.lag > self._rules.lag:
            return False
        left_at = self._left_at.get(self.current.snapshot)
        age = self._rules.max_age
        return age is None or left_at is None or now - left_at <= age

    @property
    def must_follow(self) -> bool:
        """Whether a refused candidate leaves nothing to start on."""
        if self._rules.mode != "bounded":
            return False
        return self._rules.max_age is not None or (self._rules.lag is not None and self.lag > self._rules.lag)
