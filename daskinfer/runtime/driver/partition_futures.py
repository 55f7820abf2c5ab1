"""The futures of a partition in work, and looking at those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from distributed import Future

from daskinfer.errors import ClusterLost
from daskinfer.graphs.build import Key
from daskinfer.runtime.protocol.events import Event

RESULT_SECONDS = 2
"""How long a small result may take to arrive."""


@dataclass(slots=True)
class PartitionFutures:
    """Futures of one open partition; dropping them lets the cluster forget it.

    A result goes with its worker, and Dask computes it again as soon as somebody needs it. Where that fails, its future
    turns from finished to failed. What needed it fails too, or it waits for ever: Dask lets a task whose worker has died
    wait even for what has failed already.
    """

    rows: Future | None = None
    encoded: Future | None = None
    counted: Future | None = None
    handoffs: dict[int, Future] = field(default_factory=dict)
    seconds: dict[int, Future] = field(default_factory=dict)
    """Second starts of microbatches."""
    inspections: dict[int, Future] = field(default_factory=dict)
    commit: Future | None = None
    _stale: set[Key] = field(default_factory=set)
    """What is made from rows that were lost, and were read again since."""
    _is_told: bool = False

    def all(self) -> list[Future]:
        """Return all of them."""
        single = filter(None, (self.rows, self.encoded, self.counted, self.commit))
        return [*single, *self.handoffs.values(), *self.seconds.values(), *self.inspections.values()]

    def prepare(self, rows: Future, encoded: Future, counted: Future) -> None:
        """Hold what a partition is made from, in the place of what was held so far."""
        for future in (self.rows, self.encoded, self.counted):
            release(future)
        self.rows = self.encoded = self.counted = None
        self._stale.update(future.key for future in self.all())
        self.rows, self.encoded, self.counted, self._is_told = rows, encoded, counted, False

    @property
    def lost_rows(self) -> Future | None:
        """What the partition is made from, where it is lost."""
        return next((future for future in (self.rows, self.encoded) if future and future.status == "error"), None)

    def lose_rows(self) -> BaseException | None:
        """Return what the partition's rows were lost with, once until they are prepared again."""
        if self._is_told or (lost := self.lost_rows) is None:
            return None
        self._is_told = True
        return error_of(lost)

    def is_stranded(self, future: Future) -> bool:
        """Whether a task that failed may have done so because the rows were lost."""
        return self.lost_rows is not None or future.key in self._stale

    def strand(self) -> tuple[tuple[int, ...], bool]:
        """Let go of what is made from lost rows and is not finished: return the microbatches, and whether the commit is.

        What is finished counts until it is lost as well, for then it cannot be computed again.
        """
        is_committed = self.commit is not None and self.commit.status == "finished"
        if is_committed or self.lost_rows is not None:  # nothing is left to do, or nothing can be done yet
            return (), False
        stale = [number for number, future in self.inspections.items() if future.key in self._stale]
        for number, future in self.handoffs.items():
            if future.key in self._stale and future.status != "finished":
                stale.append(number)
        is_commit = self.commit is not None and (bool(stale) or self.commit.key in self._stale)
        for number in stale:
            self.drop(number)
        if is_commit:
            release(self.commit)
            self.commit = None
        return tuple(sorted(stale)), is_commit

    def drop(self, number: int) -> None:
        """Let go of whatever is done about a microbatch."""
        for futures in (self.handoffs, self.seconds, self.inspections):
            release(futures.pop(number, None))

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
    """Let go of a future, if there is one: whoever waits for its end holds on to it, so it has to be told.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> future = Mock()
    >>> release(future)
    >>> future.release.called, release(None)
    (True, None)
    """
    if future is not None:
        future.release()


def error_of(future: Future) -> BaseException:
    """Return what a task failed with.

    Raises
    ------
    ClusterLost
        It was never computed: the scheduler dropped it.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> error_of(Mock(status="error", exception=lambda seconds: ValueError("no such row")))
    ValueError('no such row')
    >>> error_of(Mock(status="cancelled", key="read"))
    Traceback (most recent call last):
        ...
    daskinfer.errors.ClusterLost: the Dask scheduler dropped task read...
    """
    if future.status == "cancelled":  # never by us: the client lost its scheduler, and all futures with it
        raise ClusterLost(f"the Dask scheduler dropped task {future.key}")
    error: BaseException | None = future.exception(RESULT_SECONDS)
    # A scheduler that has lost workers may have forgotten by now what the task failed with: no fault of any row.
    return error if error is not None else OSError(f"task {future.key} failed, and Dask does not say why")
