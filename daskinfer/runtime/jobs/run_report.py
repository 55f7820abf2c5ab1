"""From a session that ended to its report."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Literal

from daskinfer.errors import DaskinferError, Interrupted, RejectBudgetExceeded
from daskinfer.redaction import conceal
from daskinfer.runtime.jobs.run_session import RunSession
from daskinfer.runtime.snapshots.gate_verdict import GATE, read_gate, tell_verdict
from daskinfer.spec.job.membership import MemberShare
from daskinfer.spec.job.report import Report, SnapshotShare
from daskinfer.storage.jobs.membership import list_members
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.quarantine import read_quarantine
from daskinfer.units import format_amount

Verdict = Literal["done", "failed", "interrupted", "over budget"]

SHOWN_REJECTS = 20
_LIBRARIES = ("daskinfer", "dask", "distributed", "torch", "transformers", "tokenizers", "zarr", "pyarrow", "numpy")


def make_report(session: RunSession, command: str, seconds: float, started: str) -> Report:
    """Return what a session did.

    Parameters
    ----------
    session
        After its `run`.
    command
        What runs or resumes the job.
    seconds
        The whole run.
    started
        ISO 8601, UTC.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from daskinfer.runtime.jobs.job_resolution import OpenedJob
    >>> from daskinfer.runtime.jobs.whole_job import WholeJob
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> job = OpenedJob(JobStore("work", "demo"), record, record.plan, resumed=False, done=False)
    >>> facts = {"work": WholeJob(job), "progress": WholeJob(job).progress, "error": None, "counters": {}, "epoch": 1}
    >>> clock = SimpleNamespace(startup_seconds=1.0, running_seconds=1.0)
    >>> session = SimpleNamespace(job=job, member="", reporter=clock, **facts)
    >>> report = make_report(session, "daskinfer run recipe.yaml", seconds=2.0, started=record.created)
    >>> report.verdict, report.rows_in
    ('done', 3)
    """
    record, progress = session.job.record, session.progress
    running = session.reporter.running_seconds
    shares = _list_shares(session)
    gate = read_gate(session.job.store.url)
    rejects = read_quarantine(record.output, SHOWN_REJECTS) if progress.rows_quarantined else []
    return Report(
        job=record.job,
        name=record.recipe.name,
        verdict=_verdict(session.error),
        message=_message(session),
        checkpoint=record.resolution.reference,
        snapshot=shares[-1].snapshot,
        version=shares[-1].version,
        snapshots=shares,
        trial="" if gate is None else tell_verdict(gate),
        gate="" if gate is None else join_url(session.job.store.url, GATE),
        recipe=record.recipe.digest,
        key=record.key,
        rows_in=record.rows,
        rows_out=progress.rows_out,
        rows_quarantined=progress.rows_quarantined,
        rows_truncated=progress.rows_truncated,
        rows_not_finite=progress.rows_not_finite,
        max_tokens=record.plan.max_length if record.plan.is_text else 0,
        rows_this_run=progress.rows_this_run,
        partitions=record.partitions,
        partitions_resumed=progress.partitions_resumed,
        epoch=session.epoch,
        members=_list_members(session),
        tokens=progress.tokens,
        padded_tokens=progress.padded_tokens,
        seconds=seconds,
        startup_seconds=session.reporter.startup_seconds,
        running_seconds=running,
        precision=record.precision,
        kernels=record.kernels,
        length=record.length,
        sharing="" if record.plan.sharing.is_free else record.plan.sharing.describe(),
        left_out=record.left_out,
        stages=progress.stages(running),
        counters=session.counters,
        incidents=tuple(progress.incidents),
        rejects=tuple(f"{row.source}:{row.line}: {row.error}" for row in rejects),
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        output=record.output,
        report=session.job.store.reports.url(session.member),
        command=conceal(command),
        started=started,
    )


def _list_shares(session: RunSession) -> tuple[SnapshotShare, ...]:
    """Return what each snapshot computed; the one that the job began with where nothing is committed yet."""
    committed = session.progress.shares()
    # What holds the locks is there once the work has begun.
    begun = hasattr(session.work, "snapshots")
    known = session.work.snapshots.log.known.pins if begun else (session.job.record.first_pin,)
    pins = {pin.snapshot: pin for pin in known}
    used = [pin for pin in pins.values() if pin.snapshot in committed] or [known[0]]
    empty = (0, 0)
    return tuple(
        SnapshotShare(
            snapshot=pin.snapshot,
            version=pin.version,
            partitions=committed.get(pin.snapshot, empty)[0],
            rows=committed.get(pin.snapshot, empty)[1],
        )
        for pin in used
    )


def _list_members(session: RunSession) -> tuple[MemberShare, ...]:
    """Return what each of those who ran the job together committed, in the order in which they came."""
    if not session.member:
        return ()
    committed = session.progress.members()
    return tuple(
        MemberShare(member=member.member, driver=str(member.driver), partitions=partitions, rows=rows)
        for member in list_members(session.job.store.url)
        for partitions, rows in [committed.get(member.member, (0, 0))]
    )


def _verdict(error: DaskinferError | None) -> Verdict:
    match error:
        case None:
            return "done"
        case Interrupted():
            return "interrupted"
        case RejectBudgetExceeded():
            return "over budget"
        case _:
            return "failed"


def _message(session: RunSession) -> str:
    progress = session.progress
    if session.error is not None:
        return str(session.error).splitlines()[0]
    if progress.rows_quarantined:
        return f"{format_amount(progress.rows_out, 'row')} are in the output, {progress.rows_quarantined:,} in the quarantine."
    count = len(progress.shares())
    on = "one snapshot" if count == 1 else f"{count} snapshots, each partition on one"
    return f"All {format_amount(progress.rows_out, 'row')} are in the output, computed on {on}."
