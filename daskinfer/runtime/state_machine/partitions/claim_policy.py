"""Which partitions a member of a job starts, and which are done, whoever did them: the pure part of running it together.

A member claims blocks of partitions one at a time, first those that nobody has claimed, then those of members that are
gone. Where nothing is left to claim it waits for the others, and after a while helps a living one: both then compute the
same partitions, from both ends, and the first commit wins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from daskinfer.runtime.protocol.actions import Action, ClaimBlocks
from daskinfer.runtime.protocol.events import BlocksClaimed
from daskinfer.runtime.protocol.keys import PartitionKey
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.spec.job.commit import CommitRecord

SURVEY_SECONDS = 5.0
"""How old a busy member's knowledge of what the others have committed gets."""
IDLE_SECONDS = 0.5
"""How long a member that has nothing to start waits before it looks for something again."""
HELP_SECONDS = 10.0
"""How long a member is idle before it computes what a living one has claimed."""


class CommittedSet:
    """Partitions that are committed, a byte each.

    Parameters
    ----------
    partitions
        How many there are.
    numbers
        Those that are committed to begin with.

    Examples
    --------
    >>> committed = CommittedSet(5, [1, 3])
    >>> 3 in committed, committed.missing(range(5))
    (True, [0, 2, 4])
    """

    def __init__(self, partitions: int, numbers: Iterable[int] = ()) -> None:
        self._flags = bytearray(partitions)
        for number in numbers:
            self.add(number)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and bool(self._flags[number])

    def add(self, number: int) -> None:
        """Note that a partition is committed."""
        self._flags[number] = True

    def missing(self, partitions: range) -> list[int]:
        """Return which of these partitions are not committed."""
        return [number for number in partitions if not self._flags[number]]


class UncommittedView:
    """Partitions that are not committed.

    Parameters
    ----------
    done
        Those that are.

    Examples
    --------
    >>> left = UncommittedView(CommittedSet(5, [1, 3]))
    >>> 3 in left, 4 in left
    (False, True)
    """

    def __init__(self, done: CommittedSet) -> None:
        self._done = done

    def __contains__(self, number: object) -> bool:
        return number not in self._done


class ClaimPolicy:
    """What a member has claimed and not started, and what is done; iterating takes what waits, as far as there is some.

    Parameters
    ----------
    member
        Its id.
    partitions
        How many the input has.
    committed
        Those that are committed when it begins.

    Examples
    --------
    >>> policy = ClaimPolicy("m1", partitions=5, committed=[1])
    >>> list(policy), policy.member
    ([], 'm1')
    """

    def __init__(self, member: str, partitions: int, committed: Iterable[int]) -> None:
        self.member = member
        self._done = CommittedSet(partitions, committed)
        self._waiting: deque[int] = deque()
        self._is_asking = False
        self._asked: float | None = None
        self._found = True
        self._idle_since: float | None = None

    def __iter__(self) -> Iterator[tuple[None, int]]:
        return self

    def __next__(self) -> tuple[None, int]:
        # More may follow a StopIteration: the driver asks again whenever something has happened.
        while self._waiting:
            number = self._waiting.popleft()
            if number not in self._done:
                return None, number
        raise StopIteration

    def find_new(self, event: BlocksClaimed) -> list[CommitRecord]:
        """Return the commits that are not taken in yet."""
        return [record for record in event.committed if record.partition not in self._done]

    def note(self, partition: int) -> None:
        """Take in that a partition is committed."""
        self._done.add(partition)

    def take(
        self, event: BlocksClaimed, work: PartitionTracker, abandon: Callable[[PartitionKey], Action]
    ) -> tuple[list[Action], int]:
        """Take in what the others have committed, and what is ours to start.

        Parameters
        ----------
        event
            The news.
        work
            What is in work.
        abandon
            Forgets an attempt, whatever of it is in flight, and returns what lets go of it.

        Returns
        -------
        list
            What lets go of partitions in work that are committed.
        int
            How many rows the others have quarantined.
        """
        self._is_asking = False
        actions, rejects = [], 0
        for record in self.find_new(event):
            self._done.add(record.partition)
            work.waiting.count_committed()
            rejects += record.rows_quarantined
            if (place := (record.generation, record.partition)) in work.open:
                actions.append(abandon(place))
        busy = {*self._waiting, *(number for _, number in work.open)}
        new = [number for number in event.partitions if number not in busy and number not in self._done]
        self._waiting.extend(new)
        self._found = bool(new)
        return actions, rejects

    def go_on(self, now: float, is_running: bool, is_busy: bool) -> list[ClaimBlocks]:
        """Ask for partitions, or what the others have done, where it is time to.

        Parameters
        ----------
        now
            Seconds, on any clock that never goes back.
        is_running
            Whether partitions may start.
        is_busy
            Whether some are in work.
        """
        wants = is_running and not self._waiting
        if not wants or is_busy:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if self._is_asking:
            return []
        pause = SURVEY_SECONDS if not wants else 0.0 if self._found else IDLE_SECONDS
        if self._asked is not None and now < self._asked + pause:
            return []
        self._asked, self._is_asking = now, True
        return [ClaimBlocks(wants, 0.0 if self._idle_since is None else now - self._idle_since)]


def choose_block(
    heads: Mapping[int, tuple[str, ...]],
    left: Mapping[int, int],
    member: str,
    gone: Collection[str],
    idle: float,
) -> tuple[int, tuple[str, ...]] | None:
    """Return a block to claim and the members that its claim is to name; None where there is none, for now.

    Parameters
    ----------
    heads
        Block that is not done -> the members that its newest claim names; none where nobody has claimed it.
    left
        Block -> how many of its partitions are not committed.
    member
        Who asks.
    gone
        Members that are gone.
    idle
        Seconds for which the one who asks had nothing to do.

    Examples
    --------
    >>> choose_block({0: ("m2",), 4: ()}, {0: 4, 4: 4}, "m1", gone=[], idle=0.0)
    (4, ('m1',))
    >>> choose_block({0: ("m2",)}, {0: 4}, "m1", gone=["m2"], idle=0.0)
    (0, ('m1',))
    >>> choose_block({0: ("m2",)}, {0: 4}, "m1", gone=[], idle=HELP_SECONDS)
    (0, ('m2', 'm1'))
    """
    # Whoever is idle has lost what a claim of its own was for: the answer to it may not have come through.
    absent = {*gone, *([member] if idle else [])}
    living = {block: tuple(name for name in names if name not in absent) for block, names in heads.items()}
    if free := [block for block, names in living.items() if not names]:
        return min(free), (member,)
    # Two at most: a third would compute what two others compute already.
    slow = [block for block, names in living.items() if len(names) == 1 and member not in names]
    if idle < HELP_SECONDS or not slow:
        return None
    block = max(slow, key=lambda block: (left[block], -block))
    return block, (*living[block], member)
