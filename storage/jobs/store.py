"""Jobs at rest, in `<workspace>/jobs/<job>/`.

::

    job.json          what the job is, the snapshot it is locked on included; created once
    inputs.json.gz    its partition table; created once
    corrected.json       digest of the input as it was corrected since, where a stopped job was finished on it
    epochs/           slot log: every driver it has had
    lease.json        heartbeat and progress of the last one
    members/          heartbeat and progress of everyone who ran it together with others
    claims/           slot logs: which of them has which partitions
    journal/          what happened
    control/          slot log: what people ask of the driver, and its answers
    generations/      slot log: the snapshots it took up, and what each switch gave them
    poison/           rows that break the model, by microbatch, each file created once
    gate.json .html   what the gate of a canary or a shadow found
    report.json .html what the last run did
    retries/          what every retry of quarantined rows did: 0001.json, 0001.html ...
    reports/          what each of its members did
    cleared.json      created once, when the output holds nothing of its former owner
    done.json         created once, when the output is sealed
"""

from __future__ import annotations

import gzip
import io
import time
import zlib
from collections.abc import Callable, Collection
from difflib import get_close_matches
from itertools import count

from daskinfer.errors import Conflict, IntegrityError, UsageError
from daskinfer.ids import canonical_json, make_nonce, parse_json, refuse_dense, sha256_of
from daskinfer.spec.job.membership import MemberStatus
from daskinfer.spec.job.record import JobRecord, JobStatus, State
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.jobs import lease
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.driver_identity import BEAT, TTL, Mode
from daskinfer.storage.jobs.membership import Member, Membership, list_members, seems_alive
from daskinfer.storage.jobs.reports import ReportStore, unreadable
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import (
    LARGEST_MANIFEST,
    delete,
    exists,
    list_names,
    read_record,
    replace_bytes,
)
from daskinfer.storage.objects.urls import absolute_url, join_url

# A table of a million partitions becomes a tenth.
_EXPANDED = 32 << 20
_EXPANSION = 20


class JobStore:
    """What is stored of one job.

    Parameters
    ----------
    workspace
        URL of the workspace.
    job
        Job id.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> store = JobStore("work", finish_job("work", "labels.jsonl").job)
    >>> store.record().rows, store.state(), store.current_epoch()
    (3, 'done', 1)
    """

    def __init__(self, workspace: str, job: str) -> None:
        self.job = job
        self.url = join_url(absolute_url(workspace), "jobs", job)
        self.reports = ReportStore(self.url)

    def record(self) -> JobRecord:
        """Return what the job is.

        Raises
        ------
        UsageError
            There is no such job.
        IntegrityError
            The record cannot be read.
        """
        place = self._place("job.json")
        try:
            return JobRecord.model_validate(parse_json(read_record(place))["record"])
        except FileNotFoundError as error:
            raise UsageError(f"no job {self.job}: {place} does not exist", hint="List them: daskinfer jobs") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(place, "job record") from error

    def record_place(self) -> str:
        """Return the URL of what the job is."""
        return self._place("job.json")

    def record_digest(self) -> str:
        """Return the digest of the bytes that say what the job is."""
        return sha256_of(read_record(self._place("job.json")))

    def save_table(self, table: PartitionTable) -> None:
        """Store the partition table, once and for the whole job.

        Raises
        ------
        Conflict
            The job has another one.
        """
        place = self.table_place()
        data = gzip.compress(table.model_dump_json().encode(), compresslevel=1, mtime=0)
        if not create(place, data) and self.table() != table:
            raise Conflict(f"{place} holds another partition table", hint="Start a new job: run with --fresh.")

    def table(self) -> PartitionTable:
        """Return the partition table."""
        data = self._read_table()
        try:
            return PartitionTable.model_validate_json(_decompress(data))
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise unreadable(self.table_place(), "partition table") from error

    def table_place(self) -> str:
        """Return the URL of the partition table."""
        return self._place("inputs.json.gz")

    def table_digest(self) -> str:
        """Return the digest of the bytes that say which rows are in which partition."""
        return sha256_of(self._read_table())

    def inputs(self, record: JobRecord) -> str:
        """Return the digest of the input files that the job reads: those it began with, or those corrected since."""
        place = self._place("corrected.json")
        try:
            return str(parse_json(read_record(place))["inputs"])
        except FileNotFoundError:
            return record.inputs
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(place, "record of corrected inputs") from error

    def save_inputs(self, inputs: str) -> None:
        """Note that the input was corrected in place, and that the job reads it as it is now."""
        replace_bytes(self._place("corrected.json"), canonical_json({"inputs": inputs}))

    def acquire(self, beat: float = BEAT, ttl: float = TTL, mode: Mode = "alone") -> lease.Lease:
        """Become the job's driver; see `daskinfer.storage.jobs.lease.acquire`."""
        return lease.acquire(self.url, beat, ttl, mode)

    def join(self, beat: float = BEAT, ttl: float = TTL) -> Membership:
        """Become one of the job's members; see `daskinfer.storage.jobs.lease.join`."""
        return lease.join(self.url, beat, ttl)

    def current_epoch(self) -> int:
        """Return how many drivers the job has had."""
        newest = lease.read_driver(self.url)
        return 0 if newest is None else newest[0]

    def is_cleared(self) -> bool:
        """Whether the output holds nothing of its former owner."""
        return exists(self._place("cleared.json"))

    def mark_cleared(self) -> None:
        """Note that the output holds nothing of its former owner."""
        create(self._place("cleared.json"), canonical_json({"job": self.job}))

    def others(self, member: str) -> list[Member]:
        """Return the other members of the job's present life that seem to live."""
        found = list_members(self.url, self.current_epoch())
        return [other for other in found if other.member != member and seems_alive(other)]

    def finish(self) -> None:
        """Note that the output is sealed and nothing is left to do. A second call changes nothing."""
        create(self._place("done.json"), canonical_json({"job": self.job}))

    def mark_replaced(self, successor: str) -> None:
        """Note that the output is another job's now, so that this one can never go on."""
        create(self._place("replaced.json"), canonical_json({"by": successor}))

    def reopen(self) -> None:
        """Take back that the job is finished: files of its output are gone."""
        delete(self._place("done.json"))

    def state(self) -> State:
        """Return how the job stands."""
        if exists(self._place("replaced.json")):
            return "replaced"
        if exists(self._place("done.json")):
            return "done"
        if lease.is_held(self.url):
            return "running"
        if ControlLog(self.url).cancelled(self.current_epoch()) is not None:
            return "cancelled"
        report = self.reports.last()
        # A driver that was killed leaves its predecessor's report.
        if report is not None and report.verdict == "failed" and report.epoch == self.current_epoch():
            return "failed"
        return "stopped"

    def _read_table(self) -> bytes:
        place = self.table_place()
        try:
            return read_record(place, LARGEST_MANIFEST)
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{place} is gone: which rows are in which partition, nobody can tell",
                hint="Put it back, or start over: daskinfer run RECIPE --fresh.",
            ) from error

    def _place(self, name: str) -> str:
        return join_url(self.url, name)


def create_job(workspace: str, record_of: Callable[[str], JobRecord], stem: str) -> JobStore:
    """Create a job under the first free id of `stem`, `stem-r2`, `stem-r3` ...

    Parameters
    ----------
    workspace
        URL of the workspace.
    record_of
        Makes the record for an id.
    stem
        `<name>-<first ten digits of the job key>`.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> [create_job("work", lambda job: make_job("labels.jsonl", job=job), "demo").job for _ in range(2)]
    ['demo', 'demo-r2']
    """
    for run in count(1):
        store = JobStore(workspace, stem if run == 1 else f"{stem}-r{run}")
        record = record_of(store.job).model_dump(mode="json")
        # The nonce keeps two drivers that create equal jobs at once from both believing that they did.
        if create(join_url(store.url, "job.json"), canonical_json({"nonce": make_nonce(), "record": record})):
            return store
    raise AssertionError("unreachable")


def list_jobs(workspace: str) -> list[str]:
    """Return the ids of all jobs, whether their records can be read or not.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", job="demo")
    >>> list_jobs("work")
    ['demo']
    """
    return list_names(join_url(absolute_url(workspace), "jobs"))


def find_job(workspace: str, name: str) -> JobStore:
    """Return the job with this id, or the only one whose id begins so.

    Raises
    ------
    UsageError
        There is none, or there are several.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", job="demo-0123456789")
    >>> find_job("work", "demo").job
    'demo-0123456789'
    """
    jobs = list_jobs(workspace)
    matches = [name] if name in jobs else [job for job in jobs if job.startswith(name)]
    if len(matches) == 1:
        return JobStore(workspace, matches[0])
    if matches:
        raise UsageError(
            f"{name} begins the ids of {len(matches)} jobs: {', '.join(matches)}", hint="Give more of the id."
        )
    close = get_close_matches(name, jobs, n=1)
    hint = f"Did you mean {close[0]}?" if close else "List them: daskinfer jobs"
    raise UsageError(f"no job {name} in {absolute_url(workspace)}", hint=hint)


def status(workspace: str, job: str, committed: Callable[[JobRecord], Collection[int]]) -> JobStatus:
    """Return how a job stands, from storage alone.

    Parameters
    ----------
    workspace
        URL of the workspace.
    job
        Job id, or the beginning of one.
    committed
        Lists the numbers of the partitions that are committed at the job's output.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> found = status("work", finish_job("work", "labels.jsonl").job, lambda record: [0])
    >>> found.state, found.rows_total, found.rows_done
    ('done', 3, 2)
    """
    store = find_job(workspace, job)
    record, newest, heartbeat = store.record(), lease.read_driver(store.url), lease.read_heartbeat(store.url)
    size, done = record.recipe.input.partition_rows, committed(record)
    members = [] if newest is None else list_members(store.url, newest[0])
    living = [member for member in members if seems_alive(member)]
    progress = None if heartbeat is None else heartbeat.progress
    at = None if heartbeat is None else heartbeat.at
    if members:  # the one that was heard of last knows best how the whole stands
        last = max(living or members, key=lambda member: member.at)
        progress, at = last.progress, last.at
    state = store.state()
    cancel = ControlLog(store.url).cancelled(store.current_epoch()) if state == "cancelled" else None
    return JobStatus(
        job=store.job,
        name=record.recipe.name,
        state=state,
        message="" if cancel is None else f"{cancel.by} cancelled it at {cancel.at}",
        rows_total=record.rows,
        rows_done=sum(min(size, record.rows - number * size) for number in done),
        rows_quarantined=0 if progress is None else progress.rows_quarantined,
        rows_truncated=0 if progress is None else progress.rows_truncated,
        rows_not_finite=0 if progress is None else progress.rows_not_finite,
        partitions=record.partitions,
        partitions_done=len(done),
        checkpoint=record.resolution.reference,
        snapshot=record.resolution.snapshot,
        output=record.output,
        created=record.created,
        driver="" if newest is None else str(newest[1]),
        heartbeat_age=None if at is None else max(0.0, time.time() - at),
        progress=progress,
        members=tuple(
            MemberStatus(
                member=member.member,
                driver=str(member.driver),
                is_alive=member in living,
                heartbeat_age=max(0.0, time.time() - member.at),
                rows_done=0 if member.progress is None else member.progress.rows_this_run,
            )
            for member in members
        ),
    )


def _decompress(data: bytes) -> bytes:
    """Return a table's JSON; refuse what becomes more bytes than any table of so many compressed ones."""
    most = _EXPANDED + _EXPANSION * len(data)
    text = gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)
    if len(text) > most:
        raise ValueError(f"{len(data):,} bytes become more than {most:,}")
    refuse_dense(text)
    return text
