"""What the driver has done in storage beside everything else, one thing after the other; the answers are events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from daskinfer.errors import DaskinferError, JobBusy
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.driver.run_progress import RunProgress
from daskinfer.runtime.protocol.actions import Adopt, ClaimBlocks, LookAtAlias, OpenGeneration, RecordPoison, Switch
from daskinfer.runtime.protocol.events import (
    AliasSeen,
    AliasUnseen,
    Event,
    GenerationOpened,
    GenerationRefused,
    Judged,
    PoisonRecorded,
    Switched,
)
from daskinfer.runtime.snapshots.gate_verdict import tell_verdict
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.storage.objects.backoff import outlast


class StorageRequests:
    """A thread for what is slow in storage.

    Parameters
    ----------
    snapshots
        Does them.
    progress
        Counts anew after a switch.
    patience
        Seconds that a store may refuse.
    answer
        Takes a function that gives the event, or raises what ends the run.
    claim_store
        Claims partitions, where several drivers run the job.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> from daskinfer.runtime.protocol.keys import AliasHead
    >>> snapshots, answers = Mock(look=lambda: AliasHead("sha256:ab", sequence=3)), []
    >>> requests = StorageRequests(snapshots, None, patience=1, answer=answers.append)
    >>> requests.run(LookAtAlias())
    >>> requests.close()
    >>> answers[0]().head.sequence
    3
    """

    def __init__(
        self,
        snapshots: SnapshotManager,
        progress: RunProgress,
        patience: float,
        answer: Callable[[Callable[[], Event | None]], None],
        claim_store: ClaimStore | None = None,
    ) -> None:
        self._claim_store = claim_store
        self._snapshots = snapshots
        self._progress = progress
        self._patience = patience
        self._closing = threading.Event()
        self._answer = answer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskinfer-storage")

    def run(self, action: LookAtAlias | OpenGeneration | Adopt | Switch | RecordPoison | ClaimBlocks) -> None:
        """Do what the state machine asks for."""
        match action:
            case LookAtAlias():
                self._ask(self._look)
            case OpenGeneration(pin):
                self._ask(partial(self._open, pin))
            case Adopt(generation):
                self._ask(partial(self._snapshots.log.adopt, generation))
            case RecordPoison(poison_record):
                self._ask(lambda: PoisonRecorded(self._snapshots.poison_records.record(poison_record)))
            case Switch(pin, partitions):
                self._ask(partial(self._switch, pin, partitions))
            case ClaimBlocks():
                assert self._claim_store is not None
                self._ask(partial(self._claim_store.claim, action))

    def judge(self, pin: SnapshotPin, comparison: PartComparison | None) -> None:
        """Find out whether a candidate passes, and write it down."""
        assert comparison is not None

        def call() -> Event:
            report = self._snapshots.judge(pin, comparison)
            if self._snapshots.log.known.current.generation == pin.generation:
                self._progress.recount(self._snapshots.standing.digests())
            return Judged(report.verdict == "passed", tell_verdict(report))

        self._ask(call)

    def note(self, record: CommitRecord) -> None:
        """Keep in mind that a partition is committed, for the next driver."""
        if (keep := self._snapshots.standing.note(record)) is not None:
            self._ask(keep)

    def retire(self, pin: SnapshotPin, given_up: bool) -> None:
        """Give a snapshot back."""
        self._ask(lambda: self._snapshots.retire(pin, given_up))

    def close(self) -> None:
        """Wait for what is under way, but not for a store that is away."""
        self._closing.set()
        self._thread.shutdown()

    def _ask(self, call: Callable[[], Event | None]) -> None:
        done = self._thread.submit(outlast, call, self._patience, stopping=self._closing)
        done.add_done_callback(lambda done: self._answer(done.result))

    def _look(self) -> Event:
        try:
            return AliasSeen(self._snapshots.look())
        except DaskinferError as error:
            return AliasUnseen(error)

    def _open(self, pin: SnapshotPin) -> Event:
        try:
            self._snapshots.open(pin)
        except JobBusy:
            raise
        except DaskinferError as error:
            return GenerationRefused(pin, error)
        return GenerationOpened(pin)

    def _switch(self, pin: SnapshotPin, partitions: tuple[int, ...]) -> Event:
        self._progress.recount(self._snapshots.switch(pin, partitions))
        return Switched(pin, partitions, self._progress.rows_quarantined)
