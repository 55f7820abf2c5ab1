"""Reading the rows that a job refused."""

from __future__ import annotations

from daskinfer.errors import IntegrityError
from daskinfer.ids import parse_json
from daskinfer.spec.rows import Reject
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, list_names, read_record
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.manifest import name_rejects
from daskinfer.storage.outputs.places import QUARANTINE, RECORDS, STAGED


def read_quarantine(url: str, limit: int) -> list[Reject]:
    """Return the first `limit` rows of an output's quarantine, in input order.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> found = read_quarantine(finish_job("work", "labels.jsonl", refused=[0, 2]).output, limit=10)
    >>> [(reject.row, reject.line, reject.error) for reject in found]
    [(0, 1, 'not valid JSON'), (2, 3, 'not valid JSON')]
    """
    folder = join_url(url, QUARANTINE)
    rejects: list[Reject] = []
    for name in list_names(folder):
        rejects += _read(join_url(folder, name))
        if len(rejects) >= limit:
            break
    return rejects[:limit]


def find_rejects(url: str, job: str, limit: int) -> tuple[str, list[Reject]]:
    """Return the folder with the quarantine of a job that stopped, and its first `limit` rows.

    The rows of a job that may change its snapshot lie apart until its output is whole.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> folder, found = find_rejects(finish_job("work", "labels.jsonl", refused=[0]).output, "demo", limit=10)
    >>> folder.rpartition("/")[2], len(found)
    ('_quarantine', 1)
    """
    place = absolute_url(url)
    staged = join_url(place, RECORDS, STAGED, job)
    for folder in (place, *(join_url(staged, name) for name in list_names(staged))):
        if rejects := read_quarantine(folder, limit):
            return join_url(folder, QUARANTINE), rejects
    return join_url(place, QUARANTINE), []


def read_rejects(url: str, partition: int) -> tuple[Reject, ...]:
    """Return the refused rows of a partition that has some.

    Raises
    ------
    IntegrityError
        The file that holds them is gone, or holds something else.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> [reject.row for reject in read_rejects(finish_job("work", "labels.jsonl", refused=[0]).output, 0)]
    [0]
    """
    place = join_url(url, QUARANTINE, name_rejects(partition))
    try:
        return tuple(_read(place))
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{place} is gone, though partition {partition} has rows that were refused",
            hint="Put it back, or make the output again with --fresh.",
        ) from error


def _read(url: str) -> list[Reject]:
    # Not splitlines(): an excerpt may hold separators that JSON need not escape.
    try:
        return [
            Reject(**parse_json(line)) for line in read_record(url, 4 * LARGEST_MANIFEST).decode().split("\n") if line
        ]
    except (ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(
            f"{url} does not hold the rows that were refused: {error}",
            hint="It was damaged or changed by hand: put it back, or make the output again with --fresh.",
        ) from error
