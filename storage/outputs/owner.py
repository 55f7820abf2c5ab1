"""Whom an output belongs to: a log of owners, so that no job ever writes into another one's results."""

from __future__ import annotations

from pydantic import ValidationError

from daskinfer.errors import Conflict, IntegrityError, OutputOwned
from daskinfer.spec.section import Section
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.slotlog import Slot, SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.places import RECORDS


class Owner(Section):
    """The job that an output belongs to."""

    job: str
    """Job id."""
    request: str
    """Digest of recipe, inputs, code and numerics."""
    snapshot: str
    """Snapshot digest."""
    created: str
    """ISO 8601, UTC."""
    record: str = ""
    """Digest of the bytes of the job's job.json; empty where an older version wrote it."""
    table: str = ""
    """Digest of the bytes of its inputs.json.gz, which says which rows are in which partition; empty likewise."""


def current_owner(url: str) -> Owner | None:
    """Return the owner of an output, None where the place is free.

    Raises
    ------
    OutputOwned
        Where the folder holds files that daskinfer did not write.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> current_owner("labels.jsonl") is None, current_owner(finish_job("work", "labels.jsonl").output).job
    (True, 'demo')
    """
    return _owner_of(url, _log_of(url).head())


def former_owners(url: str, job: str) -> list[str]:
    """Return the ids of all jobs that an output has belonged to before it was this job's, the first one first.

    Examples
    --------
    >>> one, other = (Owner(job=job, request="", snapshot="", created="") for job in ("first", "second"))
    >>> _ = claim("labels.jsonl", one, None), claim("labels.jsonl", other, one)
    >>> former_owners("labels.jsonl", "second")
    ['first']
    """
    log = _log_of(url)
    owners = [_parse(log, slot).job for slot in log.read()]
    return list(dict.fromkeys(owner for owner in owners if owner != job))


def claim(url: str, owner: Owner, expect: Owner | None) -> Owner:
    """Make an output belong to a job; claiming it again for the same job changes nothing.

    Parameters
    ----------
    url
        The output.
    owner
        The new owner.
    expect
        The owner it has now, None where it is free.

    Raises
    ------
    OutputOwned
        Where it belongs to another job than expected, or holds foreign files.

    Examples
    --------
    >>> one, other = (Owner(job=job, request="", snapshot="", created="2026") for job in ("first", "second"))
    >>> claim("labels.jsonl", one, expect=None).job
    'first'
    >>> claim("labels.jsonl", other, expect=None)
    Traceback (most recent call last):
        ...
    daskinfer.errors.OutputOwned: labels.jsonl belongs to job first, begun 2026
    Choose another output.url, or start over: daskinfer run RECIPE --fresh.
    """
    log = _log_of(url)
    head = log.head()
    now = _owner_of(url, head)
    if now == owner:
        return owner
    if now == expect:
        try:
            log.append(owner.model_dump(), expect=0 if head is None else head.sequence + 1)
            return owner
        except Conflict:
            now = _owner_of(url, log.head())
    raise OutputOwned(
        f"{url} belongs to job {now.job if now else 'none'}"
        + (f", begun {now.created}" if now else f"; job {expect.job if expect else 'none'} was expected"),
        hint="Choose another output.url, or start over: daskinfer run RECIPE --fresh.",
    )


def confirm(url: str, job: str) -> None:
    """Make sure that an output still belongs to a job.

    Raises
    ------
    OutputOwned
        Another job has taken it over.

    Examples
    --------
    >>> _ = claim("labels.jsonl", Owner(job="first", request="", snapshot="", created=""), None)
    >>> confirm("labels.jsonl", "first")
    >>> confirm("labels.jsonl", "second")
    Traceback (most recent call last):
        ...
    daskinfer.errors.OutputOwned: labels.jsonl was taken over by job first; job second stops
    Choose another output.url, or start over: daskinfer run RECIPE --fresh.
    """
    owner = current_owner(url)
    if owner is None or owner.job != job:
        raise _taken_over(url, owner, job)


class OwnerWatch:
    """Whether an output is still a job's, asked again and again: one look at the log after the first time.

    Parameters
    ----------
    url
        The output.

    Examples
    --------
    >>> one, other = (Owner(job=job, request="", snapshot="", created="") for job in ("first", "second"))
    >>> watch = OwnerWatch("labels.jsonl")
    >>> _ = claim("labels.jsonl", one, None), watch.confirm("first"), claim("labels.jsonl", other, one)
    >>> watch.confirm("first")
    Traceback (most recent call last):
        ...
    daskinfer.errors.OutputOwned: labels.jsonl was taken over by job second; job first stops
    Choose another output.url, or start over: daskinfer run RECIPE --fresh.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._owner: Owner | None = None
        self._next: int | None = None

    def confirm(self, job: str) -> None:
        """Make sure that nobody but this job owns the output; one without a log of owners is nobody's.

        Raises
        ------
        OutputOwned
            Another job does.
        """
        log = _log_of(self._url)
        if self._next is None:
            head, self._next = log.head(), 0
            found = iter([] if head is None else [head])
        else:
            found = log.follow(self._next)
        for slot in found:
            self._owner, self._next = _parse(log, slot), slot.sequence + 1
        if self._owner is not None and self._owner.job != job:
            raise _taken_over(self._url, self._owner, job)


def _taken_over(url: str, owner: Owner | None, job: str) -> OutputOwned:
    return OutputOwned(
        f"{url} was taken over by job {owner.job if owner else 'none'}; job {job} stops",
        hint="Choose another output.url, or start over: daskinfer run RECIPE --fresh.",
    )


def _parse(log: SlotLog, slot: Slot) -> Owner:
    try:
        return Owner.model_validate(slot.record)
    except ValidationError as error:
        raise IntegrityError(
            f"{log.slot_url(slot.sequence)} does not name the owner of an output",
            hint="It was damaged or changed by hand; put it back, or choose another output.url.",
        ) from error


def _owner_of(url: str, head: Slot | None) -> Owner | None:
    if head is not None:
        return _parse(_log_of(url), head)
    foreign = [name for name in list_names(url) if name != RECORDS]
    if foreign:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise OutputOwned(
            f"{url} holds files that daskinfer did not write: {listed}",
            hint="Choose an empty or new folder as output.url.",
        )
    return None


def _log_of(url: str) -> SlotLog:
    return SlotLog(join_url(url, RECORDS, "owner"))
