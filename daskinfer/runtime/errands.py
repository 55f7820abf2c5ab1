"""What the driver has done in storage beside everything else, one thing after the other; the answers are events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from daskinfer.errors import DaskinferError, JobBusy
from daskinfer.runtime.keeper import Keeper
from daskinfer.runtime.ledger import Ledger
from daskinfer.runtime.messages import AliasSeen, AliasUnseen, Event, GenerationOpened, GenerationRefused, Switched
from daskinfer.spec.generation import Pin


class Errands:
    """A thread for the keeper's slow calls.

    Parameters
    ----------
    keeper
        Does them.
    ledger
        Counts anew after a switch.
    answer
        Takes a function that gives the event, or raises what ends the run.
    """

    def __init__(self, keeper: Keeper, ledger: Ledger, answer: Callable[[Callable[[], Event | None]], None]) -> None:
        self._keeper = keeper
        self._ledger = ledger
        self._answer = answer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskinfer-storage")

    def look(self) -> None:
        """Find out where the alias points."""

        def call() -> Event:
            try:
                return AliasSeen(self._keeper.look())
            except DaskinferError as error:
                return AliasUnseen(error)

        self._run(call)

    def open(self, pin: Pin) -> None:
        """Lock a snapshot, make sure that it fits, and write it down."""

        def call() -> Event:
            try:
                self._keeper.open(pin)
            except JobBusy:
                raise
            except DaskinferError as error:
                return GenerationRefused(pin, error)
            return GenerationOpened(pin)

        self._run(call)

    def switch(self, pin: Pin, partitions: tuple[int, ...]) -> None:
        """Let a generation take over partitions."""

        def call() -> Event:
            self._ledger.recount(self._keeper.switch(pin, partitions))
            return Switched(pin, partitions, self._ledger.rows_quarantined)

        self._run(call)

    def retire(self, pin: Pin) -> None:
        """Give a snapshot back."""
        self._run(lambda: self._keeper.retire(pin))

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()

    def _run(self, call: Callable[[], Event | None]) -> None:
        self._thread.submit(call).add_done_callback(lambda done: self._answer(done.result))
