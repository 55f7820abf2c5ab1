"""Jobs as their records have them: how they stand, what they did, whether their output is whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from daskinfer.errors import DaskinferError, IntegrityError, JobFailed, StorageRefused
from daskinfer.spec.job.record import JobRecord, JobStatus
from daskinfer.spec.job.report import Report
from daskinfer.spec.verification import OutputVerification
from daskinfer.storage.jobs import store as job_store
from daskinfer.storage.outputs import verification
from daskinfer.storage.outputs.job_output import check_record, open_standing


def status(job: str, workspace: str) -> JobStatus:
    """Return how a job stands, from storage alone; `job` may be the beginning of an id.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", rows=3)
    >>> found = status("de", "work")
    >>> found.job, found.state, found.rows_done, found.partitions_done
    ('demo', 'done', 3, 2)
    """
    found = job_store.status(workspace, job, lambda record: _committed(record, workspace))
    told = 0 if found.progress is None else found.progress.rows_done
    if found.state in ("running", "done", "replaced") or told == found.rows_done:
        return found
    # What workers committed when the driver had ended is in the records alone.
    with suppress(IntegrityError):  # a damaged record is told by what needs it
        digests = list(open_standing(job_store.find_job(workspace, found.job).record(), workspace).digests())
        counted = ("rows_quarantined", "rows_truncated", "rows_not_finite")
        return found.model_copy(update={name: sum(getattr(each, name) for each in digests) for name in counted})
    return found


def jobs(workspace: str, damaged: Callable[[DaskinferError], None] | None = None) -> list[JobStatus]:
    """Return how all jobs of a workspace stand, the newest first.

    Parameters
    ----------
    workspace
        URL of the workspace.
    damaged
        Told of every job whose records cannot be read; without it, the first of them is raised.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl")
    >>> [(job.job, job.state) for job in jobs("work")], jobs("empty")
    ([('demo', 'done')], [])
    """
    found: list[JobStatus] = []
    for name in job_store.list_jobs(workspace):
        try:
            found.append(status(name, workspace))
        except StorageRefused:  # the store is away, which is no job's fault
            raise
        except DaskinferError as error:
            if damaged is None:
                raise
            damaged(error)
    return sorted(found, key=lambda job: (job.created, job.job), reverse=True)


def report(job: str, workspace: str, member: str = "") -> Report:
    """Return what a job's last run did, or one of several drivers that ran it together.

    Raises
    ------
    JobFailed
        No run of it has ended yet.
    IntegrityError
        It is done, and the report is gone.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl", rows=3, refused=[1])
    >>> report("demo", "work").message
    '2 rows are in the output, 1 in the quarantine.'
    """
    store = job_store.find_job(workspace, job)
    found = store.reports.last(member)
    if found is None and not member and store.state() == "done":
        raise IntegrityError(
            f"{store.reports.url(member)} and the JSON file beside it are gone, though job {store.job} is done",
            hint=f"Put them back, or look at the output: daskinfer verify {store.job}",
        )
    if found is None:
        raise JobFailed(
            f"no run of job {store.job} has ended, so there is no report", hint=f"Look: daskinfer status {store.job}"
        )
    return found


def verify_output(job: str, workspace: str, watch: Callable[[int, int], None] | None = None) -> OutputVerification:
    """Compare a finished job's output with its manifest, byte by byte.

    Parameters
    ----------
    job, workspace
        The job, or the beginning of its id, and where it is recorded.
    watch
        Called with how many of how many parts have been read.

    Returns
    -------
    OutputVerification
        What is damaged; nothing where `damaged` is empty.

    Raises
    ------
    JobFailed
        The job is not finished.
    IntegrityError
        The manifest is gone, or another job's.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl")
    >>> verify_output("demo", "work").damaged
    ()
    >>> _ = next(Path("labels.jsonl").glob("*.jsonl")).write_text("")
    >>> [part.partition for part in verify_output("demo", "work").damaged]
    [0]
    """
    store = job_store.find_job(workspace, job)
    if store.state() != "done":
        raise JobFailed(
            f"job {store.job} is not finished, so there is no whole output to verify",
            hint=f"Look: daskinfer status {store.job}",
        )
    record = store.record()
    check_record(store, record)
    return verification.verify_output(record, watch or (lambda done, total: None))


def _committed(record: JobRecord, workspace: str) -> list[int]:
    return list(open_standing(record, workspace).numbers())
