"""A candidate on trial: some partitions are computed on two snapshots and compared, pair by pair.

A *shadow* is only looked at; the job stays where it is. A *canary* comes first and decides: where the gate lets it pass,
the job is computed on the candidate, else on the current snapshot, and the output is on one of them alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from daskinfer.runtime.protocol.actions import Action, Compare
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import SnapshotPin

Places = Iterator[tuple[int | None, int]]
"""(generation, partition) of what is to be computed; None for whatever generation is current by then."""


class CanaryTrial:
    """Which pairs there are, and how far they are.

    Parameters
    ----------
    pin
        The candidate.
    sample
        Partitions to compare.
    decides
        Whether nothing else starts before the verdict.
    committed
        Generation -> partition -> record, of what earlier runs have committed of the sample.
    current
        Generation that the candidate is compared with.

    Examples
    --------
    >>> pin = SnapshotPin(generation=1, snapshot="sha256:2")
    >>> trial = CanaryTrial(pin, sample=[0, 2], decides=True, committed={}, current=0)
    >>> places, count = trial.places(partitions=5, committed=[])
    >>> list(places), count
    ([(None, 0), (1, 0), (None, 2), (1, 2)], 4)
    """

    def __init__(
        self,
        pin: SnapshotPin,
        sample: Collection[int],
        decides: bool,
        committed: Mapping[int, Mapping[int, CommitRecord]],
        current: int,
    ) -> None:
        self.pin = pin
        self.sample = frozenset(sample)
        self.decides = decides
        self.verdict: bool | None = None
        self._is_asked = False
        self._current = current
        self._records = {
            generation: {number: record for number, record in committed.get(generation, {}).items() if number in sample}
            for generation in (current, pin.generation)
        }
        self._compared: set[int] = set()

    def begin(self) -> list[Action]:
        """Compare what earlier runs have left to compare."""
        return [action for number in sorted(self.sample) for action in self._compare_if_paired(number)]

    def places(self, partitions: int, committed: Collection[int]) -> tuple[Places, int]:
        """Return what is to be computed before the verdict, or beside everything else, and how much that is."""
        done = self._records[self.pin.generation]
        numbers = sorted(self.sample) if self.decides else range(partitions)
        count = sum(number not in committed for number in numbers) + sum(number not in done for number in self.sample)

        def walk() -> Places:
            for number in numbers:
                if number not in committed:
                    yield None, number
                if number in self.sample and number not in done:
                    yield self.pin.generation, number

        return walk(), count

    def note(self, generation: int, record: CommitRecord) -> list[Action]:
        """Take in what an attempt committed."""
        if record.partition not in self.sample:
            return []
        self._records[generation][record.partition] = record
        return self._compare_if_paired(record.partition)

    def compared(self, partition: int) -> None:
        """Note that a pair was compared."""
        self._compared.add(partition)

    def ask(self) -> bool:
        """Whether it is time to ask for the verdict; true only once."""
        is_time = self.is_compared and not self._is_asked
        self._is_asked = self._is_asked or is_time
        return is_time

    def decide(self, verdict: bool) -> None:
        """Take in whether the candidate passed."""
        self.verdict = verdict

    @property
    def is_compared(self) -> bool:
        """Whether every pair was."""
        return self._compared == self.sample

    def is_done(self, number: int) -> bool:
        """Whether the candidate has computed a partition."""
        return number in self._records[self.pin.generation]

    def _compare_if_paired(self, number: int) -> list[Action]:
        pair = [self._records[generation].get(number) for generation in (self._current, self.pin.generation)]
        if pair[0] is None or pair[1] is None:
            return []
        return [Compare(pair[0], pair[1])]
