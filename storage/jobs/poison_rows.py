"""The poisonous rows of a job, in `<workspace>/jobs/<job>/poison/`: one file a microbatch, created once.

Whoever computes a partition, now or after a resume, takes them as they stand, so that a partition's quarantine and its
bytes are the same whoever finishes it.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.ids import canonical_json, parse_json
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import delete, list_names, read_record
from daskinfer.storage.objects.urls import join_url

POISON = "poison"

_READERS = 16
_NAME = re.compile(r"g\d{4}-\d{8}-\d{6}\.json")


class PoisonRecords:
    """What is stored of a job's poisonous rows.

    Parameters
    ----------
    job
        URL of the job's folder.
    round, epoch
        Number of a retry and life of its driver, which finds out anew: what was wrong may have been corrected since the
        last one. 0 for the job itself.

    Examples
    --------
    >>> records = PoisonRecords("jobs/j1")
    >>> found = PoisonRecord(generation=0, partition=3, microbatch=1, of=8, rows=(), attempts=())
    >>> records.record(found) == found, records.all() == [found]
    (True, True)
    """

    def __init__(self, job: str, round: int = 0, epoch: int = 0) -> None:
        self._folder = join_url(job, POISON, *([f"r{round:04d}-e{epoch:04d}"] if round else []))

    def record(self, poison_record: PoisonRecord) -> PoisonRecord:
        """Write a poison record down, and return the one that counts: another driver's where that came first."""
        name = f"g{poison_record.generation:04d}-{poison_record.partition:08d}-{poison_record.microbatch:06d}.json"
        url = join_url(self._folder, name)
        # The time keeps two drivers with equal findings from writing equal bytes; either may believe that it was first.
        stored = {"decided": datetime.now(UTC).isoformat(), **poison_record.model_dump(mode="json")}
        return poison_record if create(url, canonical_json(stored)) else _read(url)

    def all(self) -> list[PoisonRecord]:
        """Read every poison record."""
        urls = [join_url(self._folder, name) for name in list_names(self._folder) if _NAME.fullmatch(name)]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(_read, urls))


def forget_poison_records(job: str) -> None:
    """Delete what is stored of a job's poisonous rows: they may have been corrected.

    Examples
    --------
    >>> records = PoisonRecords("jobs/j1")
    >>> _ = records.record(PoisonRecord(generation=0, partition=3, microbatch=1, of=8, rows=(), attempts=()))
    >>> forget_poison_records("jobs/j1")
    >>> records.all()
    []
    """
    delete(join_url(job, POISON), recursive=True)


def _read(url: str) -> PoisonRecord:
    try:
        stored = parse_json(read_record(url))
        stored.pop("decided")
        return PoisonRecord.model_validate(stored)
    except (ValueError, KeyError, AttributeError, ValidationError) as error:
        raise IntegrityError(
            f"{url} is not a record of poisonous rows",
            hint="It was damaged or changed by hand: put it back, or delete it: its rows are tried anew.",
        ) from error
