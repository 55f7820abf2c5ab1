"""What a member of a job asks of storage: what is committed, which blocks are free, and to have one of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from daskinfer.errors import StorageRefused
from daskinfer.planning.blocks import Blocks
from daskinfer.runtime.protocol.actions import ClaimBlocks
from daskinfer.runtime.protocol.events import BlocksClaimed
from daskinfer.runtime.state_machine.partitions.claim_policy import (
    SURVEY_SECONDS,
    CommittedSet,
    UncommittedView,
    choose_block,
)
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.storage.jobs.membership import Watch
from daskinfer.storage.jobs.partition_claims import ClaimLog
from daskinfer.storage.outputs.sink import WholeOutput

_SURVEY_SHARE = 20
"""A survey is followed by so many times its own time without one: listings of large outputs take long."""


class ClaimStore:
    """One member's hand in storage; its calls come from one thread.

    Parameters
    ----------
    member
        Its id.
    log
        Of the job's claims.
    blocks
        What can be claimed.
    output
        Where commits are found.
    watch
        Tells which members are gone.
    clock
        Seconds on any clock of this process that never goes back.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from daskinfer.planning.blocks import cut_blocks
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> log, output = ClaimLog("work/jobs/demo", epoch=1), SimpleNamespace(committed=lambda wanted: ())
    >>> store = ClaimStore("ann", log, cut_blocks(make_job("labels.jsonl")), output, Watch("work/jobs/demo"))
    >>> store.claim(ClaimBlocks(is_wanted=True)).partitions
    (0,)
    """

    def __init__(
        self,
        member: str,
        log: ClaimLog,
        blocks: Blocks,
        output: WholeOutput,
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._member = member
        self._log = log
        self._blocks = blocks
        self._output = output
        self._watch = watch
        self._clock = clock
        self._done = CommittedSet(blocks.partitions)
        self._open = list(blocks.starts)
        self._next = 0
        self._surveyed: float | None = None
        self._took = 0.0

    def claim(self, action: ClaimBlocks) -> BlocksClaimed:
        """Do as the driver asks; a store that is away for a minute must not end hours of work."""
        records: tuple[CommitRecord, ...] = ()
        try:
            records = self._survey(SURVEY_SECONDS)
            if action.is_wanted and (found := self._claim_next()):
                return BlocksClaimed(found, records)
            records += self._survey(0.0)
            return BlocksClaimed(self._take_over(action.idle) if action.is_wanted else (), records)
        except StorageRefused as error:
            return BlocksClaimed(committed=records, trouble=error.message)

    def _survey(self, pause: float) -> tuple[CommitRecord, ...]:
        """Find out what was committed since the last time, where that is long enough ago."""
        began = self._clock()
        if self._surveyed is not None and began < self._surveyed + max(pause, _SURVEY_SHARE * self._took):
            return ()
        records = tuple(self._output.committed(UncommittedView(self._done)))
        for record in records:
            self._done.add(record.partition)
        self._surveyed = self._clock()
        self._took = self._surveyed - began
        self._open = [block for block in self._open if self._missing(block)]
        return records

    def _claim_next(self) -> tuple[int, ...]:
        """Claim the first block that nobody has claimed yet."""
        starts = self._blocks.starts
        while self._next < len(starts):
            block = starts[self._next]
            self._next += 1
            if (missing := self._missing(block)) and self._log.take(block, (self._member,), 0):
                return missing
        return ()

    def _take_over(self, idle: float) -> tuple[int, ...]:
        """Claim a block of a member that is gone, or of one that may need help."""
        heads = {block: self._log.head(block) for block in self._open}
        names = {block: () if head is None else head.members for block, head in heads.items()}
        others = {name for each in names.values() for name in each} - {self._member}
        left = {block: len(self._missing(block)) for block in heads}
        choice = choose_block(names, left, self._member, self._watch.look(others), idle)
        if choice is None:
            return ()
        block, members = choice
        head = heads[block]
        if not self._log.take(block, members, 0 if head is None else head.token + 1):
            return ()
        missing = self._missing(block)
        return missing if len(members) == 1 else missing[::-1]

    def _missing(self, block: int) -> tuple[int, ...]:
        return tuple(self._done.missing(self._blocks.partitions_of(block)))
