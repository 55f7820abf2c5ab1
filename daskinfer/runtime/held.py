"""The futures of a partition in work, and looking at those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from distributed import Future

from daskinfer.errors import ClusterLost
from daskinfer.runtime.messages import Event

RESULT_SECONDS = 2
"""How long a small result may take to arrive."""


@dataclass(slots=True)
class Held:
    """Futures of one open partition; dropping them lets the cluster forget it.

    A result goes with its worker, and Dask computes it again as soon as somebody needs it. Where that fails, its future
    turns from finished to failed, and what needed it fails too.
    """

    rows: Future | None = None
    encoded: Future | None = None
    handoffs: dict[int, Future] = field(default_factory=dict)
    seconds: dict[int, Future] = field(default_factory=dict)
    """Second starts of microbatches."""
    others: list[Future] = field(default_factory=list)
    _reading: bool = True

    def all(self) -> list[Future]:
        """Return all of them."""
        single = filter(None, (self.rows, self.encoded))
        return [*single, *self.handoffs.values(), *self.seconds.values(), *self.others]

    def prepare(self, rows: Future, encoded: Future) -> None:
        """Hold what a partition is made from, in the place of what was held so far."""
        release(self.rows)
        release(self.encoded)
        self.rows, self.encoded, self._reading = rows, encoded, False

    def lose_rows(self) -> Future | None:
        """Return what the partition is made from where it is lost, once until it is prepared again."""
        lost = [future for future in (self.rows, self.encoded) if future is not None and future.status == "error"]
        if self._reading or not lost:
            return None
        self._reading = True
        return lost[0]

    def lost_handoffs(self) -> Iterator[tuple[int, BaseException]]:
        """Return the microbatches that were through the last stage and are lost, with what went wrong."""
        for number, future in self.handoffs.items():
            if future.status == "error":
                yield number, error_of(future)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a task that is done. No closure: one that puts itself back would keep the result until garbage is collected."""

    future: Future
    settle: Callable[[Future], Event | None]
    lost: list[Callable[[], Event | None]]

    def __call__(self) -> Event | None:
        """Return the event that follows; None where there is none, or not yet."""
        try:
            if self.future.status in ("finished", "error", "cancelled"):
                return self.settle(self.future)
        except TimeoutError:
            pass
        # It was done, and was lost with its worker before we looked. It is computed again, perhaps on a worker that
        # we have yet to place: look again later, and never wait for it here.
        self.lost.append(self)
        return None


def release(future: Future | None) -> None:
    """Let go of a future, if there is one: whoever waits for its end holds on to it, so it has to be told."""
    if future is not None:
        future.release()


def error_of(future: Future) -> BaseException:
    """Return what a task failed with.

    Raises
    ------
    ClusterLost
        It was never computed: the scheduler dropped it.
    """
    if future.status == "cancelled":  # never by us: the client lost its scheduler, and all futures with it
        raise ClusterLost(f"the Dask scheduler dropped task {future.key}")
    error: BaseException | None = future.exception(RESULT_SECONDS)
    # A scheduler that has lost workers may have forgotten by now what the task failed with: no fault of any row.
    return error if error is not None else OSError(f"task {future.key} failed, and Dask does not say why")
