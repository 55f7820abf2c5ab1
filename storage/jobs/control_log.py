"""The control log of a job: what people ask of its driver, and what the driver answers.

A slot log in `jobs/<job>/control/`, so that whoever can write to the workspace reaches the driver, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.control import ControlRecord
from daskinfer.storage.objects.naming import make_signature
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.objects.urls import join_url


class ControlLog:
    """What is asked of a job.

    Parameters
    ----------
    url
        Folder of the job.

    Examples
    --------
    >>> log = ControlLog("jobs/j1")
    >>> request = log.ask_drain(epoch=1, worker="tcp://10.0.0.7:8786")
    >>> log.answer(1, request, "it left after partition 3")
    >>> log.find_answer(request).detail, sorted(log.drained())
    ('it left after partition 3', ['tcp://10.0.0.7:8786'])
    """

    def __init__(self, url: str) -> None:
        self._log = SlotLog(join_url(url, "control"))

    def ask_cancel(self, epoch: int) -> int:
        """Ask the drivers up to an epoch to stop; return the request's number."""
        return self._append({"op": "cancel", "epoch": epoch})

    def ask_drain(self, epoch: int, worker: str) -> int:
        """Ask the drivers up to an epoch to let a worker go; return the request's number."""
        return self._append({"op": "drain", "epoch": epoch, "worker": worker})

    def answer(self, epoch: int, request: int, detail: str) -> None:
        """Say what became of a request."""
        self._append({"op": "done", "epoch": epoch, "request": request, "detail": detail})

    def read(self, start: int = 0) -> Iterator[tuple[int, ControlRecord]]:
        """Yield all records from a number on, with their numbers.

        Raises
        ------
        IntegrityError
            One of them is none.
        """
        for slot in self._log.follow(start):
            yield slot.sequence, self._parse(slot)

    def find_answer(self, request: int) -> ControlRecord | None:
        """Return the first answer to a request, if there is one yet."""
        found = (record for _, record in self.read(request + 1) if record.op == "done" and record.request == request)
        return next(found, None)

    def drained(self) -> frozenset[str]:
        """Return the addresses of all workers that anybody ever wanted drained."""
        return frozenset(record.worker for _, record in self.read() if record.op == "drain")

    def cancelled(self, epoch: int) -> ControlRecord | None:
        """Return the request that ended a driver, if one did."""
        records = dict(self.read())
        answered = [record.request for record in records.values() if record.op == "done" and record.epoch == epoch]
        asked = (records[number] for number in answered if number is not None)
        return next((record for record in asked if record.op == "cancel"), None)

    def _append(self, record: dict[str, object]) -> int:
        return self._log.append({**record, **make_signature()}).sequence

    def _parse(self, slot: Slot) -> ControlRecord:
        try:
            return ControlRecord.model_validate(slot.record)
        except ValidationError as error:
            raise IntegrityError(
                f"{self._log.slot_url(slot.sequence)} is not a record of a control log",
                hint="It was damaged or changed by hand: put it back, or start over: daskinfer run RECIPE --fresh.",
            ) from error
