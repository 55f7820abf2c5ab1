"""The generation log of a job: which snapshots it took up, and which partitions each switch took over.

A switch is one record, so it happens or it does not; the seal is one too, so that no driver that slept through a switch
can seal what it no longer owns. Two drivers that write at once are told apart by the slot.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from daskinfer.errors import Conflict, IntegrityError, JobBusy
from daskinfer.spec.job.generation import Generations, SnapshotPin, Step, as_ranges, fold
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url


class GenerationLog:
    """What one driver knows and writes of its job's generations.

    Parameters
    ----------
    url
        Folder of the job.
    first
        Generation 0.
    epoch
        Life of the driver; 0 for a reader.

    Examples
    --------
    >>> pins = [SnapshotPin(generation=number, snapshot=f"sha256:{number}") for number in range(2)]
    >>> log = GenerationLog("jobs/j1", pins[0], epoch=1)
    >>> log.prepare(pins[1])
    >>> log.switch(1, range(10, 20))
    >>> log.known.owner(9), log.known.owner(10), log.known.current.snapshot
    (0, 1, 'sha256:1')
    """

    def __init__(self, url: str, first: SnapshotPin, epoch: int = 0) -> None:
        self._log = SlotLog(join_url(url, "generations"))
        self._first = first
        self._epoch = epoch
        self._next = 0
        self.known = self.read()

    def read(self) -> Generations:
        """Read the log anew."""
        slots = self._log.read()
        self._next = len(slots)
        try:
            self.known = fold(self._first, [Step.model_validate(slot.record) for slot in slots])
        except (ValidationError, AssertionError) as error:
            raise IntegrityError(
                f"{self._log.url} is not the log of a job's generations",
                hint="One of its files was damaged or changed by hand: put it back, or start over: daskinfer run RECIPE --fresh.",
            ) from error
        return self.known

    def prepare(self, pin: SnapshotPin) -> None:
        """Take up a snapshot."""
        self._append(Step(op="prepare", generation=pin.generation, pin=pin, epoch=self._epoch))

    def adopt(self, generation: int) -> None:
        """Note that partitions start on a generation: a later driver goes on with it."""
        self._append(Step(op="adopt", generation=generation, epoch=self._epoch))

    def switch(self, generation: int, partitions: Iterable[int]) -> None:
        """Let a generation take over partitions, given in ascending order."""
        self._append(Step(op="switch", generation=generation, owned=as_ranges(partitions), epoch=self._epoch))

    def drop(self, generation: int, reason: str) -> None:
        """Give a generation up; nothing starts on it any more."""
        self._append(Step(op="drop", generation=generation, epoch=self._epoch, reason=reason))

    def seal(self) -> None:
        """Rule out any further switch; a second call changes nothing."""
        if not self.known.sealed:
            self._append(Step(op="seal", epoch=self._epoch))

    def _append(self, step: Step) -> None:
        try:
            self._log.append(step.model_dump(mode="json"), expect=self._next)
        except Conflict as error:
            raise JobBusy(
                f"another driver wrote {self._log.url}; this one stops", hint="Wait until it ends, or stop it there."
            ) from error
        self.read()
