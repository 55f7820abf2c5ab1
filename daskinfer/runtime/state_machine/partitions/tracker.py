"""Partitions on their way from waiting to committed: the part of the driver's logic that keeps the window full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from daskinfer.runtime.protocol.actions import Action, Commit, Prepare, Release, Submit
from daskinfer.runtime.protocol.events import Prepared
from daskinfer.runtime.protocol.keys import PartitionKey, Step

_SHARES = 3
"""The window is filled up when this part of it is free."""


@dataclass(slots=True)
class OpenPartition:
    """A partition between its first task and its commit, on one generation."""

    microbatches: int | None = None
    submitted: int = 0
    done: set[int] = field(default_factory=set)
    attempts: Counter[tuple[str, int]] = field(default_factory=Counter)
    starts: Counter[int] = field(default_factory=Counter)
    """Microbatch -> how often it was started again: the number of its newest attempt."""
    withheld: set[int] = field(default_factory=set)
    """Microbatches that were taken out of the flow."""
    excused: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Attempts that failed through no fault of the task."""
    committing: bool = False
    commits: int = 0
    """How often its commit was started."""

    @property
    def unsubmitted(self) -> int:
        """Microbatches that are known and not in flight yet."""
        return (self.microbatches or 0) - self.submitted

    def count_attempt(self, step: Step, number: int) -> int:
        """Take in that a task failed; return how often it has by now, at least."""
        self.attempts[step, number] += 1
        return self.attempts[step, number]

    def excuse_attempt(self, step: Step, number: int) -> None:
        """Take in that a task failed through no fault of its own."""
        self.excused[step, number] += 1

    def next_attempt(self, microbatch: int) -> int:
        """Return a number that no attempt at a microbatch has had."""
        self.starts[microbatch] += 1
        return self.starts[microbatch]


class WaitingPartitions:
    """Partitions that nothing has started on, and how many are left to do.

    Parameters
    ----------
    numbers
        (generation, partition), in order; None for whatever generation is current by then. More may follow its end.
    left
        How much is left to do.

    Examples
    --------
    >>> waiting = WaitingPartitions(iter([(None, 0), (None, 1)]), left=2)
    >>> waiting.take(), waiting.take_all(), waiting.left
    ((None, 0), (1,), 2)
    """

    def __init__(self, numbers: Iterator[tuple[int | None, int]], left: int) -> None:
        self._numbers = numbers
        self.left = left

    def take(self) -> tuple[int | None, int] | None:
        """Return the next one; None where none waits now."""
        return next(self._numbers, None)

    def take_all(self) -> tuple[int, ...]:
        """Return all of them, and leave none."""
        return tuple(number for _, number in self._numbers)

    def refill(self, partitions: Iterable[int]) -> None:
        """Let these partitions wait for their start, and nothing else be left."""
        numbers = tuple(partitions)
        self._numbers = ((None, number) for number in numbers)
        self.left = len(numbers)

    def count_committed(self) -> None:
        """Take in that one partition less is left to do."""
        self.left -= 1


class PartitionTracker:
    """What is left to do, and what is in work.

    Parameters
    ----------
    window
        Microbatches in flight.
    waiting
        What is to be computed, in order: (generation, partition); None for whatever generation is current by then. More
        may follow its end.
    left
        How much that is.

    Examples
    --------
    >>> partitions = PartitionTracker(window=2, waiting=iter([(None, 0), (None, 1)]), left=2)
    >>> partitions.pump(generation=0, may_start=True)[0]
    Prepare(partition=0, attempt=0, generation=0)
    >>> partitions.on_prepared(Prepared(partition=0, microbatches=1), now=0.0)
    []
    >>> partitions.pump(generation=0, may_start=True)
    [Submit(partition=0, numbers=(0,), attempt=0, generation=0)]
    """

    def __init__(self, window: int, waiting: Iterator[tuple[int | None, int]], left: int) -> None:
        self.window = window
        self.waiting = WaitingPartitions(waiting, left)
        self._open: dict[PartitionKey, OpenPartition] = {}
        self._in_flight = 0
        self._typical: int | None = None
        self.is_held = False
        """Whether nothing new may be in flight."""

    def __getitem__(self, place: PartitionKey) -> OpenPartition:
        return self._open[place]

    def resize(self, window: int) -> None:
        """Let so many microbatches be in flight from now on."""
        self.window = window

    def hold(self, is_held: bool) -> None:
        """Let nothing new be in flight, or let it again."""
        self.is_held = is_held

    @property
    def left(self) -> int:
        """Partitions that are left to do."""
        return self.waiting.left

    @property
    def open(self) -> Collection[PartitionKey]:
        """Attempts in work."""
        return self._open.keys()

    def on_prepared(self, event: Prepared, now: float) -> list[Action]:
        """Take in how many microbatches a partition has."""
        place = (event.generation, event.partition)
        self._open[place].microbatches = event.microbatches
        self._typical = max(1, event.microbatches)
        return self._commit_if_whole(place)

    def computed(self, place: PartitionKey, microbatch: int) -> list[Action]:
        """Note that a microbatch is through the last stage."""
        self._open[place].done.add(microbatch)
        self._in_flight -= 1
        return self._commit_if_whole(place)

    def lose(self, place: PartitionKey, microbatches: Collection[int]) -> None:
        """Note that microbatches which were through are in flight again, so that their partition cannot be committed."""
        partition = self._open[place]
        partition.done.difference_update(microbatches)
        partition.committing = False
        self._in_flight += len(microbatches)

    def strand(self, place: PartitionKey, microbatches: Collection[int], committing: bool) -> list[Action]:
        """Start microbatches again that will never end, or never be there for the commit, and the commit itself."""
        partition = self._open[place]
        if lost := partition.done.intersection(microbatches):
            self.lose(place, lost)
        elif committing:
            return [self.commit(place)]
        return [self.again(place, number) for number in microbatches if number not in partition.withheld]

    @property
    def in_flight(self) -> int:
        """Microbatches in the normal flow."""
        return self._in_flight

    def is_flying(self, place: PartitionKey, microbatch: int) -> bool:
        """Whether a microbatch is in the normal flow."""
        partition = self._open.get(place)
        if partition is None or microbatch >= partition.submitted:
            return False
        return microbatch not in partition.done and microbatch not in partition.withheld

    def withhold(self, place: PartitionKey, microbatch: int) -> None:
        """Take a microbatch out of the flow."""
        self._open[place].withheld.add(microbatch)
        self._in_flight -= 1

    def again(self, place: PartitionKey, microbatch: int) -> Action:
        """Start a microbatch again in the normal flow, one that was withheld or one that is still in it."""
        partition = self._open[place]
        if microbatch in partition.withheld:
            partition.withheld.remove(microbatch)
            self._in_flight += 1
        return Submit(place[1], (microbatch,), partition.next_attempt(microbatch), place[0])

    def commit(self, place: PartitionKey) -> Action:
        """Commit a partition all of whose microbatches are done, for the first time or again."""
        partition = self._open[place]
        partition.committing = True
        partition.commits += 1
        return Commit(place[1], partition.commits - 1, place[0])

    def computed_apart(self, place: PartitionKey, microbatch: int) -> list[Action]:
        """Note that a microbatch is computed that was taken out of the flow."""
        partition = self._open[place]
        partition.withheld.remove(microbatch)
        partition.done.add(microbatch)
        return self._commit_if_whole(place)

    def committed(self, place: PartitionKey) -> Action:
        """Forget an attempt whose partition is committed."""
        del self._open[place]
        return Release(place[1], place[0])

    def abandon(self, place: PartitionKey) -> Action:
        """Forget an attempt that is of no use any more, whatever of it is in flight."""
        partition = self._open.pop(place)
        self._in_flight -= partition.submitted - len(partition.done) - len(partition.withheld)
        return Release(place[1], place[0])

    def pump(self, generation: int, may_start: bool) -> list[Action]:
        """Fill the window with microbatches, and prepare partitions on a generation so that it stays full."""
        actions: list[Action] = []
        # A submission costs driver and scheduler the same, however many microbatches it has: let some gather.
        is_due = not self.is_held and (not self._in_flight or self.window - self._in_flight >= self.window // _SHARES)
        for place, partition in self._open.items():
            take = min(self.window - self._in_flight, partition.unsubmitted) if is_due else 0
            if take > 0:
                begin = partition.submitted
                numbers = tuple(range(begin, begin + take))
                actions.append(Submit(place[1], numbers, attempt=0, generation=place[0]))
                partition.submitted += take
                self._in_flight += take
        ahead = sum(partition.unsubmitted for partition in self._open.values())
        preparing = sum(partition.microbatches is None for partition in self._open.values())
        committing = sum(partition.committing for partition in self._open.values())
        # Until one partition has shown how many microbatches to expect, two are enough to begin with.
        expected = self._typical or self.window
        while (
            may_start
            and ahead + preparing * expected < 2 * self.window
            and preparing < self.window
            and committing <= self.window
        ):
            following = self.waiting.take()
            if following is None:
                break
            chosen, number = following
            chosen = generation if chosen is None else chosen
            self._open[chosen, number] = OpenPartition()
            preparing += 1
            actions.append(Prepare(number, attempt=0, generation=chosen))
        return actions

    def _commit_if_whole(self, place: PartitionKey) -> list[Action]:
        partition = self._open[place]
        if partition.committing or len(partition.done) != partition.microbatches:
            return []
        return [self.commit(place)]
